package move

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/migrate"
)

// Label is on every record; its value is the kind of the object, in lower case.
const Label = "lanyard.id/migration"

// recordType keeps records apart from secrets of other use.
const recordType corev1.SecretType = "lanyard.id/migration"

const (
	recordKey = "record.json.gz"
	// maxRecord leaves room for the Secret around it within etcd's limit of 1.5 MiB;
	// a Secret's data is at most 1 MiB.
	maxRecord = 1000 << 10
	// maxUnpacked bounds what is unpacked from a Secret that anybody may have written.
	maxUnpacked = 32 << 20
)

// A Record is what is known of one object that migration changed. It is in the
// namespace of the workload, or of the service account that a role binding is
// for.
type Record struct {
	Version   int         `json:"version"`
	Object    migrate.Ref `json:"object"`
	Namespace string      `json:"namespace"` // where the record is
	Action    string      `json:"action"`    // create, update or recreate
	// Before is the object as it was, all of it; null if it was made.
	Before *unstructured.Unstructured `json:"before"`
	// After is the object as migration leaves it, without what the server manages.
	After *unstructured.Unstructured `json:"after"`

	ServiceAccount string             `json:"serviceAccount,omitempty"` // of a workload: as which it runs now
	Identities     []migrate.Identity `json:"identities,omitempty"`     // of a workload
	Proxy          bool               `json:"proxy,omitempty"`          // of a workload
	Finished       bool               `json:"finished,omitempty"`       // of a workload: nmi serves it no more
	Audience       string             `json:"audience,omitempty"`

	Credentials []migrate.NewCredential `json:"credentials,omitempty"` // of a service account: that were made for it
	Subject     string                  `json:"subject,omitempty"`     // of a role binding: the service account that was added
}

const recordVersion = 1

func (r *Record) name() string {
	sum := sha256.Sum256([]byte(r.Object.String() + "\x00" + r.Subject))
	name := strings.TrimRight(r.Object.Name[:min(150, len(r.Object.Name))], "-.")
	return "lanyard-migration-" + strings.ToLower(r.Object.Kind) + "-" + strings.ReplaceAll(name, ":", ".") + "-" + hex.EncodeToString(sum[:4])
}

func (r *Record) secret() (*corev1.Secret, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("recording %s: %w", r.Object, err)
	}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(raw); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	if b.Len() > maxRecord {
		return nil, fmt.Errorf("%s is too large to be kept for a rollback: %d KiB packed, and a Secret holds %d: make it smaller first", r.Object, b.Len()>>10, maxRecord>>10)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.Namespace, Name: r.name(), Labels: map[string]string{Label: strings.ToLower(r.Object.Kind)},
			Annotations: map[string]string{Label: r.Object.String() + " before it was migrated: lanyard migrate rollback"},
		},
		Type: recordType, Data: map[string][]byte{recordKey: b.Bytes()},
	}, nil
}

func readRecord(s *corev1.Secret) (*Record, error) {
	fail := func(err error) (*Record, error) {
		return nil, fmt.Errorf("the record in Secret %s/%s cannot be read: %w", s.Namespace, s.Name, err)
	}
	z, err := gzip.NewReader(bytes.NewReader(s.Data[recordKey]))
	if err != nil {
		return fail(err)
	}
	raw, err := io.ReadAll(io.LimitReader(z, maxUnpacked))
	if err != nil {
		return fail(err)
	}
	r := &Record{}
	if err := json.Unmarshal(raw, r); err != nil {
		return fail(err)
	}
	switch {
	case r.Version != recordVersion:
		return fail(fmt.Errorf("its version is %d, and this program knows %d", r.Version, recordVersion))
	case r.Namespace != s.Namespace || r.name() != s.Name:
		// Whoever may write a Secret here must not reach other namespaces by it.
		return fail(fmt.Errorf("it is of %s in namespace %q, which belongs elsewhere", r.Object, r.Namespace))
	case r.Object.Namespace != r.Namespace && r.Subject == "":
		return fail(fmt.Errorf("it is of %s, which is not in this namespace", r.Object))
	case r.Subject != "" && r.Object.Kind != migrate.KindRoleBinding && r.Object.Kind != migrate.KindClusterRoleBinding:
		return fail(fmt.Errorf("%s has no subjects", r.Object))
	}
	for _, o := range []*unstructured.Unstructured{r.Before, r.After} {
		if o != nil && r.Subject == "" && migrate.RefOf(o) != r.Object {
			return fail(fmt.Errorf("it holds %s and says that it is of %s", migrate.RefOf(o), r.Object))
		}
	}
	for _, c := range r.Credentials { // a rollback deletes them with its user's rights in Azure
		if r.Object.Kind != migrate.KindServiceAccount || c.Subject != federated.Subject(r.Namespace, r.Object.Name) {
			return fail(fmt.Errorf("it claims the federated credential %s of %s, which is not that of %s", c.Name, c.Parent.ClientID, r.Object))
		}
	}
	if r.Before == nil && r.After == nil && r.Subject == "" {
		return fail(fmt.Errorf("it holds no object"))
	}
	return r, nil
}

// Records returns the records of a namespace, or of all if it is empty, in order.
func (m *Mover) Records(ctx context.Context, namespace string) ([]*Record, error) {
	list, err := m.Kube.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{LabelSelector: Label})
	if err != nil {
		return nil, fmt.Errorf("listing the records of migrations (Secrets with the label %s): %w", Label, err)
	}
	var all []*Record
	for i := range list.Items {
		if list.Items[i].Type != recordType {
			continue
		}
		r, err := readRecord(&list.Items[i])
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *Record) int {
		return strings.Compare(a.Namespace+"/"+a.name(), b.Namespace+"/"+b.name())
	})
	return all, nil
}

func (m *Mover) recordOf(ctx context.Context, like *Record) (*Record, error) {
	s, err := m.Kube.CoreV1().Secrets(like.Namespace).Get(ctx, like.name(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the record of %s: %w", like.Object, err)
	}
	if s.Type != recordType {
		return nil, fmt.Errorf("the Secret %s/%s is in the way of the record of %s: remove it", s.Namespace, s.Name, like.Object)
	}
	return readRecord(s)
}

// keep writes a record before its object is changed. What an earlier record says
// of the object's origin stays; edits by others since then become part of it.
func (m *Mover) keep(ctx context.Context, r *Record) error {
	r.Version = recordVersion
	old, err := m.recordOf(ctx, r)
	if err != nil {
		return err
	}
	if old != nil {
		for _, c := range old.Credentials {
			if !slices.ContainsFunc(r.Credentials, func(have migrate.NewCredential) bool {
				return have.Name == c.Name && strings.EqualFold(have.Parent.ClientID, c.Parent.ClientID)
			}) {
				r.Credentials = append(r.Credentials, c)
			}
		}
		if err := r.inherit(old); err != nil {
			return err
		}
	}
	return m.write(ctx, r, old != nil)
}

func (r *Record) inherit(old *Record) error {
	if old.Before == nil || r.Before == nil || old.After == nil {
		r.Before = old.Before
		if old.Before == nil {
			r.Action = old.Action
		}
		return nil
	}
	if same(r.Before, old.After) || same(r.Before, old.Before) {
		r.Before = old.Before
		return nil
	}
	before, err := undo(r.Before, old)
	if err != nil {
		return err
	}
	r.Before = before
	return nil
}

func (m *Mover) write(ctx context.Context, r *Record, exists bool) error {
	s, err := r.secret()
	if err != nil {
		return err
	}
	secrets := m.Kube.CoreV1().Secrets(r.Namespace)
	if exists {
		_, err = secrets.Update(ctx, s, metav1.UpdateOptions{FieldManager: fieldManager})
	} else {
		_, err = secrets.Create(ctx, s, metav1.CreateOptions{FieldManager: fieldManager})
	}
	if err != nil {
		return fmt.Errorf("keeping %s for a rollback: %w", r.Object, err)
	}
	return nil
}

func (m *Mover) forget(ctx context.Context, r *Record) error {
	err := m.Kube.CoreV1().Secrets(r.Namespace).Delete(ctx, r.name(), metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("removing the record of %s: %w", r.Object, err)
	}
	return nil
}

// canonical is an object as people write it, in the one form that JSON has for it.
func canonical(o *unstructured.Unstructured) []byte {
	raw, err := json.Marshal(migrate.Canonical(o).Object) // maps are written in order
	if err != nil {
		return nil
	}
	return raw
}

// same reports whether two objects are equal, but for what the server manages.
func same(a, b *unstructured.Unstructured) bool {
	return a != nil && b != nil && bytes.Equal(canonical(a), canonical(b))
}

// undo returns o without what migration changed, and with what others did.
func undo(o *unstructured.Unstructured, r *Record) (*unstructured.Unstructured, error) {
	patch, err := jsonpatch.CreateMergePatch(canonical(r.After), canonical(r.Before))
	if err != nil {
		return nil, fmt.Errorf("comparing %s: %w", r.Object, err)
	}
	raw, err := o.MarshalJSON()
	if err != nil {
		return nil, err
	}
	if raw, err = jsonpatch.MergePatch(raw, patch); err != nil {
		return nil, fmt.Errorf("undoing the change of %s: %w", r.Object, err)
	}
	next := &unstructured.Unstructured{}
	return next, next.UnmarshalJSON(raw)
}

func unmarshal(raw []byte, into any) error { return json.Unmarshal(raw, into) }
