package mutation

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// A TokenEndpoint is where pods exchange their token that are not to go to
// Entra themselves: a token proxy such as that of AKS identity bindings. The
// zero value is none.
type TokenEndpoint struct {
	Suffix   string // of the annotation AnnotationUsePrefix by which a pod asks for it
	Audience string // of the projected token

	// Variables of the container. An empty one is left out.
	Proxy, SNIName, CAData string

	// Where the CA is: none, a ConfigMap in the pod's namespace (key ca.crt),
	// or the ClusterTrustBundles of a signer.
	CAConfigMap, CASigner string
	CALabelSelector       json.RawMessage // of ClusterTrustBundles; nil means all of the signer
}

func (e TokenEndpoint) annotation() string { return workloadidentity.AnnotationUsePrefix + e.Suffix }

// asked reports whether the pod goes to the endpoint.
func (e TokenEndpoint) asked(pod Pod) bool {
	return e.Suffix != "" && strings.EqualFold(pod.Annotations[e.annotation()], "true")
}

// validate reports what an administrator has to change. The first texts are
// those of azure-workload-identity.
func (e TokenEndpoint) validate() error {
	const texts = "custom token endpoint "
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch {
	case e.Suffix == "" && e.Audience == "":
		return nil
	case e.Suffix == "":
		fail(texts + "annotation suffix cannot be empty when audience is set")
	case e.Audience == "":
		fail(texts + "audience cannot be empty when annotation suffix is set")
	case e.Audience == workloadidentity.Audience:
		fail(texts+"audience cannot be equal to default audience %q", workloadidentity.Audience)
	}
	if problems := validation.IsQualifiedName(e.annotation()); e.Suffix != "" && len(problems) > 0 {
		fail(texts+"annotation key %q is not valid: %s", e.annotation(), strings.Join(problems, "; "))
	}
	if u, err := url.Parse(e.Proxy); e.Proxy != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil) {
		fail("%s is %q: write an https URL without user, query and fragment", workloadidentity.EnvTokenProxy, e.Proxy)
	}
	sources := 0
	for _, s := range []string{e.CAData, e.CAConfigMap, e.CASigner} {
		if s != "" {
			sources++
		}
	}
	if sources > 1 {
		fail("AZURE_KUBERNETES_CA_DATA, AZURE_KUBERNETES_CA_CONFIGMAP_NAME and AZURE_KUBERNETES_CA_CTB_SIGNER_NAME are mutually exclusive: keep one")
	}
	if e.CALabelSelector != nil && e.CASigner == "" {
		fail("AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR needs AZURE_KUBERNETES_CA_CTB_SIGNER_NAME: set the signer or remove the selector")
	}
	return errors.Join(errs...)
}

// environment returns the endpoint's variables in the order in which they are added.
func (e TokenEndpoint) environment() []envVar {
	file := ""
	if e.CAConfigMap != "" || e.CASigner != "" {
		file = workloadidentity.MountPath + "/" + workloadidentity.CAPath
	}
	return []envVar{
		{workloadidentity.EnvTokenProxy, e.Proxy},
		{workloadidentity.EnvSNIName, e.SNIName},
		{workloadidentity.EnvCAFile, file},
		{workloadidentity.EnvCAData, e.CAData},
	}
}

// source is what the endpoint adds to the projected volume; nil if nothing.
func (e TokenEndpoint) source() map[string]any {
	switch {
	case e.CAConfigMap != "":
		return map[string]any{"configMap": map[string]any{
			"name": e.CAConfigMap, "optional": false,
			"items": []any{map[string]any{"key": "ca.crt", "path": workloadidentity.CAPath}},
		}}
	case e.CASigner != "":
		bundle := map[string]any{"signerName": e.CASigner, "optional": false, "path": workloadidentity.CAPath}
		if e.CALabelSelector != nil {
			var selector any
			if json.Unmarshal(e.CALabelSelector, &selector) == nil {
				bundle["labelSelector"] = selector
			}
		}
		return map[string]any{"clusterTrustBundle": bundle}
	}
	return nil
}
