package processnode

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// environment returns the container's variables in order, a later one of the
// same name counts.
func (p *pod) environment(ctx context.Context, c corev1.Container) ([]corev1.EnvVar, error) {
	// The API server's Service, as in every pod; client-go looks for it.
	all := []corev1.EnvVar{{Name: "KUBERNETES_SERVICE_HOST", Value: "10.96.0.1"}, {Name: "KUBERNETES_SERVICE_PORT", Value: "443"}, {Name: "KUBERNETES_SERVICE_PORT_HTTPS", Value: "443"}}
	for _, from := range c.EnvFrom {
		data, err := p.envFrom(ctx, from)
		if err != nil {
			return nil, err
		}
		var names []string
		for name := range data {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			all = append(all, corev1.EnvVar{Name: from.Prefix + name, Value: data[name]})
		}
	}
	known := map[string]string{}
	for _, e := range all {
		known[e.Name] = e.Value
	}
	for _, e := range c.Env {
		value := expand(e.Value, known)
		if e.ValueFrom != nil {
			var err error
			var set bool
			if value, set, err = p.valueFrom(ctx, e.ValueFrom); err != nil {
				return nil, fmt.Errorf("variable %s: %w", e.Name, err)
			}
			if !set {
				continue
			}
		}
		known[e.Name] = value
		all = append(all, corev1.EnvVar{Name: e.Name, Value: value})
	}
	return all, nil
}

func (p *pod) envFrom(ctx context.Context, from corev1.EnvFromSource) (map[string]string, error) {
	data := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		c, err := p.node.Client.CoreV1().ConfigMaps(p.object.Namespace).Get(ctx, from.ConfigMapRef.Name, metav1.GetOptions{})
		if err != nil {
			return nil, unless(from.ConfigMapRef.Optional, err)
		}
		return c.Data, nil
	case from.SecretRef != nil:
		s, err := p.node.Client.CoreV1().Secrets(p.object.Namespace).Get(ctx, from.SecretRef.Name, metav1.GetOptions{})
		if err != nil {
			return nil, unless(from.SecretRef.Optional, err)
		}
		for k, v := range s.Data {
			data[k] = string(v)
		}
	}
	return data, nil
}

// valueFrom returns a variable's value, or that it is not set because what is
// optional does not exist.
func (p *pod) valueFrom(ctx context.Context, from *corev1.EnvVarSource) (value string, set bool, err error) {
	var data map[string]string
	var key string
	var optional *bool
	switch {
	case from.FieldRef != nil:
		value, err = p.field(from.FieldRef.FieldPath)
		return value, true, err
	case from.SecretKeyRef != nil:
		r := from.SecretKeyRef
		key, optional = r.Key, r.Optional
		data, err = p.envFrom(ctx, corev1.EnvFromSource{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: r.LocalObjectReference, Optional: optional}})
	case from.ConfigMapKeyRef != nil:
		r := from.ConfigMapKeyRef
		key, optional = r.Key, r.Optional
		data, err = p.envFrom(ctx, corev1.EnvFromSource{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: r.LocalObjectReference, Optional: optional}})
	default:
		return "", false, fmt.Errorf("the simulated node has no values from this source")
	}
	if err != nil {
		return "", false, err
	}
	value, set = data[key]
	if !set && (optional == nil || !*optional) {
		return "", false, fmt.Errorf("there is no key %q", key)
	}
	return value, set, nil
}
