package processnode

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fill writes the pod's volumes and returns when a token in them has to be
// renewed; zero means never. Files are replaced, never changed in place.
func (p *pod) fill(ctx context.Context) (renew time.Time, err error) {
	for _, v := range p.object.Spec.Volumes {
		dir := p.volume(v.Name)
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return renew, err
		}
		switch {
		case v.EmptyDir != nil:
			err = os.Chmod(dir, 0o777)
		case v.Secret != nil:
			err = p.secret(ctx, dir, v.Secret.SecretName, v.Secret.Items, v.Secret.Optional)
		case v.ConfigMap != nil:
			err = p.configMap(ctx, dir, v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional)
		case v.DownwardAPI != nil:
			err = p.downward(dir, v.DownwardAPI.Items)
		case v.Projected != nil:
			for _, source := range v.Projected.Sources {
				var at time.Time
				if at, err = p.projected(ctx, dir, source); err != nil {
					break
				}
				if !at.IsZero() && (renew.IsZero() || at.Before(renew)) {
					renew = at
				}
			}
		default:
			err = fmt.Errorf("the simulated node has no volumes of this kind")
		}
		if err != nil {
			return renew, fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return renew, nil
}

func (p *pod) projected(ctx context.Context, dir string, s corev1.VolumeProjection) (renew time.Time, err error) {
	switch {
	case s.ServiceAccountToken != nil:
		return p.token(ctx, dir, s.ServiceAccountToken)
	case s.ConfigMap != nil:
		return renew, p.configMap(ctx, dir, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional)
	case s.Secret != nil:
		return renew, p.secret(ctx, dir, s.Secret.Name, s.Secret.Items, s.Secret.Optional)
	case s.DownwardAPI != nil:
		return renew, p.downward(dir, s.DownwardAPI.Items)
	}
	return renew, fmt.Errorf("the simulated node has no projected volumes of this kind")
}

// token asks for a token as the kubelet does: for one audience, bound to the
// pod, renewed when 80 % of its life is over.
func (p *pod) token(ctx context.Context, dir string, s *corev1.ServiceAccountTokenProjection) (time.Time, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: s.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.object.Name, UID: p.object.UID},
	}}
	if s.Audience != "" {
		request.Spec.Audiences = []string{s.Audience}
	}
	account := p.object.Spec.ServiceAccountName
	got, err := p.node.Client.CoreV1().ServiceAccounts(p.object.Namespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return time.Time{}, fmt.Errorf("requesting a token of %s: %w", account, err)
	}
	life := time.Until(got.Status.ExpirationTimestamp.Time)
	return time.Now().Add(life * 8 / 10), put(dir, s.Path, []byte(got.Status.Token))
}

func (p *pod) secret(ctx context.Context, dir, name string, items []corev1.KeyToPath, optional *bool) error {
	s, err := p.node.Client.CoreV1().Secrets(p.object.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return unless(optional, err)
	}
	return putAll(dir, items, s.Data)
}

func (p *pod) configMap(ctx context.Context, dir, name string, items []corev1.KeyToPath, optional *bool) error {
	c, err := p.node.Client.CoreV1().ConfigMaps(p.object.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return unless(optional, err)
	}
	data := map[string][]byte{}
	for k, v := range c.BinaryData {
		data[k] = v
	}
	for k, v := range c.Data {
		data[k] = []byte(v)
	}
	return putAll(dir, items, data)
}

func (p *pod) downward(dir string, items []corev1.DownwardAPIVolumeFile) error {
	for _, i := range items {
		if i.FieldRef == nil {
			return fmt.Errorf("the simulated node has no %s", i.Path)
		}
		value, err := p.field(i.FieldRef.FieldPath)
		if err != nil {
			return err
		}
		if err := put(dir, i.Path, []byte(value)); err != nil {
			return err
		}
	}
	return nil
}

// unless forgives that something optional does not exist.
func unless(optional *bool, err error) error {
	if optional != nil && *optional && apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func putAll(dir string, items []corev1.KeyToPath, data map[string][]byte) error {
	if len(items) == 0 {
		for key := range data {
			items = append(items, corev1.KeyToPath{Key: key, Path: key})
		}
	}
	for _, i := range items {
		content, ok := data[i.Key]
		if !ok {
			return fmt.Errorf("there is no key %q", i.Key)
		}
		if err := put(dir, i.Path, content); err != nil {
			return err
		}
	}
	return nil
}

// put writes a file in one step. The folder above is private to us.
func put(dir, name string, content []byte) error {
	root, err := os.OpenRoot(dir) // the name is the user's
	if err != nil {
		return err
	}
	defer root.Close()
	if sub := filepath.Dir(name); sub != "." {
		if err := root.MkdirAll(sub, 0o755); err != nil {
			return err
		}
	}
	temp := name + ".new"
	if err := root.WriteFile(temp, content, 0o644); err != nil {
		return err
	}
	return root.Rename(temp, name)
}
