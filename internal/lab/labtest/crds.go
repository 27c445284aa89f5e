package labtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// applyCRDs creates every CustomResourceDefinition in the YAML files and waits
// until the server serves them. Finding none is an error: a wrong directory
// would else show as a confusing 404 in a test.
func applyCRDs(ctx context.Context, config *rest.Config, files fs.FS) error {
	crds, err := readCRDs(files)
	if err != nil {
		return err
	}
	if len(crds) == 0 {
		return errors.New("there is no CustomResourceDefinition in Cluster.CRDs")
	}
	clients, err := apiextensions.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client for CRDs: %w", err)
	}
	client := clients.CustomResourceDefinitions()
	for i := range crds {
		// Strict: a misspelt field in a manifest is a failure here, as it is a
		// warning for the user who applies it.
		if _, err := client.Create(ctx, &crds[i], metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
			return fmt.Errorf("creating the CRD %s: %w", crds[i].Name, err)
		}
	}
	for i := range crds {
		err := poll(ctx, 10*time.Millisecond, func() error {
			crd, err := client.Get(ctx, crds[i].Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			return established(crd)
		})
		if err != nil {
			return fmt.Errorf("waiting for the CRD %s: %w", crds[i].Name, err)
		}
	}
	return nil
}

func readCRDs(files fs.FS) ([]apiextensionsv1.CustomResourceDefinition, error) {
	var crds []apiextensionsv1.CustomResourceDefinition
	err := fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || (path.Ext(name) != ".yaml" && path.Ext(name) != ".yml") {
			return err
		}
		content, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
		for {
			document, err := documents.Read()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("reading %s: %w", name, err)
			}
			var kind metav1.TypeMeta
			if err := yaml.Unmarshal(document, &kind); err != nil {
				return fmt.Errorf("reading %s: %w", name, err)
			}
			if kind.Kind != "CustomResourceDefinition" {
				continue
			}
			var crd apiextensionsv1.CustomResourceDefinition
			if err := yaml.UnmarshalStrict(document, &crd); err != nil {
				return fmt.Errorf("reading the CRD in %s: %w", name, err)
			}
			crds = append(crds, crd)
		}
	})
	return crds, err
}

// established returns nil when the server serves the CRD's resources, else why
// it does not.
func established(crd *apiextensionsv1.CustomResourceDefinition) error {
	reason := "it has no condition yet"
	for _, c := range crd.Status.Conditions {
		switch {
		case c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue:
			return nil
		case c.Status == apiextensionsv1.ConditionFalse:
			reason = fmt.Sprintf("%s is false: %s", c.Type, c.Message)
		}
	}
	return fmt.Errorf("it is not established: %s", reason)
}
