// Package record keeps what a rollback needs: for each object that migration
// changes a Secret beside it, with the object as it was and as it is to be.
//
//	Store.Keep    before an object is changed; what an earlier run wrote about its origin stays
//	Store.List    every record is checked, because anybody who may write Secrets may forge one
//	Record.Undo   an object without what migration changed, and with what others did
package record

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
	"k8s.io/client-go/kubernetes"

	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/migrate"
)

// Label is on every record; its value is the kind of the object, in lower case.
const Label = "lanyard.id/migration"

// secretType keeps records apart from secrets of other use.
const secretType corev1.SecretType = "lanyard.id/migration"

const (
	dataKey = "record.json.gz"
	// maxPacked leaves room for the Secret around it within etcd's limit of 1.5 MiB;
	// a Secret's data is at most 1 MiB.
	maxPacked = 1000 << 10
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

	// Remaking says that the object is being deleted to be made again: if it is
	// gone, it was lost on the way, and has not merely ended.
	Remaking bool `json:"remaking,omitempty"`

	ServiceAccount string             `json:"serviceAccount,omitempty"` // of a workload: as which it runs now
	Identities     []migrate.Identity `json:"identities,omitempty"`     // of a workload
	Proxy          bool               `json:"proxy,omitempty"`          // of a workload
	Finished       bool               `json:"finished,omitempty"`       // of a workload: nmi serves it no more
	Audience       string             `json:"audience,omitempty"`

	Credentials []migrate.NewCredential `json:"credentials,omitempty"` // of a service account: that were made for it
	Subject     string                  `json:"subject,omitempty"`     // of a role binding: the service account that was added

	stored string // the resource version of its Secret; empty if there is none
}

const version = 1

// Account is the service account that a record is for, empty for a workload's.
func (r *Record) Account() string {
	switch {
	case r.IsWorkload():
		return ""
	case r.Subject != "":
		return r.Subject
	case r.ServiceAccount != "":
		return r.ServiceAccount
	}
	return r.Object.Name
}

// IsWorkload reports whether the record is of something that has pods.
func (r *Record) IsWorkload() bool {
	return slices.ContainsFunc(migrate.Kinds(), func(k migrate.Kind) bool { return k.Kind == r.Object.Kind })
}

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
	if b.Len() > maxPacked {
		return nil, fmt.Errorf("%s is too large to be kept for a rollback: %d KiB packed, and a Secret holds %d: make it smaller first", r.Object, b.Len()>>10, maxPacked>>10)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.Namespace, Name: r.name(), Labels: map[string]string{Label: strings.ToLower(r.Object.Kind)},
			Annotations: map[string]string{Label: r.Object.String() + " before it was migrated: lanyard migrate rollback"},
		},
		Type: secretType, Data: map[string][]byte{dataKey: b.Bytes()},
	}, nil
}

func read(s *corev1.Secret) (*Record, error) {
	fail := func(err error) (*Record, error) {
		return nil, fmt.Errorf("the record in Secret %s/%s is not used: %w; if no migration wrote it, remove it", s.Namespace, s.Name, err)
	}
	z, err := gzip.NewReader(bytes.NewReader(s.Data[dataKey]))
	if err != nil {
		return fail(err)
	}
	raw, err := io.ReadAll(io.LimitReader(z, maxUnpacked))
	if err != nil {
		return fail(err)
	}
	r := &Record{stored: s.ResourceVersion}
	if err := json.Unmarshal(raw, r); err != nil {
		return fail(err)
	}
	if err := r.check(s.Namespace, s.Name); err != nil {
		return fail(err)
	}
	return r, nil
}

// check refuses what no migration writes. A rollback acts with its user's rights:
// whoever may write a Secret in a namespace must not reach beyond it, or get
// rights in it, by a record that he made up.
func (r *Record) check(namespace, name string) error {
	fail := fmt.Errorf
	role := r.Object.Kind == migrate.KindRoleBinding || r.Object.Kind == migrate.KindClusterRoleBinding
	switch {
	case r.Version != version:
		return fail("its version is %d, and this program knows %d", r.Version, version)
	case r.Namespace != namespace || r.name() != name:
		// Whoever may write a Secret here must not reach other namespaces by it.
		return fail("it is of %s in namespace %q, which belongs elsewhere", r.Object, r.Namespace)
	case r.Object.Namespace != r.Namespace && r.Subject == "":
		return fail("it is of %s, which is not in this namespace", r.Object)
	case !slices.Contains(kinds(), r.Object.Kind):
		return fail("%s is of a kind that is never migrated", r.Object)
	case role && (r.Subject == "" || r.Before != nil || r.After != nil):
		// All else about a role binding would give rights to whom it pleases.
		return fail("of %s only a subject is ever added", r.Object)
	case r.Object.Kind == migrate.KindFederatedIdentity && r.Before != nil:
		return fail("%s is only ever made", r.Object)
	case (r.Action == migrate.ActionRecreate || r.Remaking) && r.Object.Kind != "Job":
		return fail("%s is never deleted to be made again", r.Object)
	case r.Subject != "" && !role:
		return fail("%s has no subjects", r.Object)
	}
	for _, o := range []*unstructured.Unstructured{r.Before, r.After} {
		if o != nil && r.Subject == "" && migrate.RefOf(o) != r.Object {
			return fail("it holds %s and says that it is of %s", migrate.RefOf(o), r.Object)
		}
	}
	for _, c := range r.Credentials { // a rollback deletes them with its user's rights in Azure
		if r.Object.Kind != migrate.KindServiceAccount || c.Subject != federated.Subject(r.Namespace, r.Object.Name) {
			return fail("it claims the federated credential %s of %s, which is not that of %s", c.Name, c.Parent.ClientID, r.Object)
		}
	}
	if r.Before == nil && r.After == nil && r.Subject == "" {
		return fail("it holds no object")
	}
	return nil
}

// kinds are those that a plan changes.
func kinds() []string {
	return []string{"Deployment", "StatefulSet", "DaemonSet", "CronJob", "Job", migrate.KindServiceAccount, migrate.KindRoleBinding, migrate.KindClusterRoleBinding, migrate.KindFederatedIdentity}
}

// A Store keeps the records of one cluster.
type Store struct {
	Kube    kubernetes.Interface
	Manager string // in managedFields
}

// List returns the records of a namespace, or of all if it is empty, in order.
func (k Store) List(ctx context.Context, namespace string) ([]*Record, error) {
	list, err := k.Kube.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{LabelSelector: Label})
	if err != nil {
		return nil, fmt.Errorf("listing the records of migrations (Secrets with the label %s): %w", Label, err)
	}
	var all []*Record
	for i := range list.Items {
		if list.Items[i].Type != secretType {
			continue
		}
		r, err := read(&list.Items[i])
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

func (k Store) find(ctx context.Context, like *Record) (*Record, error) {
	s, err := k.Kube.CoreV1().Secrets(like.Namespace).Get(ctx, like.name(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the record of %s: %w", like.Object, err)
	}
	if s.Type != secretType {
		return nil, fmt.Errorf("the Secret %s/%s is in the way of the record of %s: remove it", s.Namespace, s.Name, like.Object)
	}
	return read(s)
}

// Keep writes a record before its object is changed. What an earlier record says
// of the object's origin stays; edits by others since then become part of it.
func (k Store) Keep(ctx context.Context, r *Record) error {
	r.Version = version
	old, err := k.find(ctx, r)
	if err != nil {
		return err
	}
	r.stored = ""
	if old != nil {
		r.stored = old.stored
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
	return k.Write(ctx, r)
}

func (r *Record) inherit(old *Record) error {
	if old.Before == nil || r.Before == nil || old.After == nil {
		r.Before = old.Before
		if old.Before == nil {
			r.Action = old.Action
		}
		return nil
	}
	if Same(r.Before, old.After) || Same(r.Before, old.Before) {
		r.Before = old.Before
		return nil
	}
	before, err := old.Undo(r.Before)
	if err != nil {
		return err
	}
	r.Before = before
	return nil
}

// Write writes a record that Keep wrote or List returned, as it is now. It is an
// error if another run has changed it meanwhile.
func (k Store) Write(ctx context.Context, r *Record) error {
	s, err := r.secret()
	if err != nil {
		return err
	}
	secrets := k.Kube.CoreV1().Secrets(r.Namespace)
	if s.ResourceVersion = r.stored; r.stored == "" {
		s, err = secrets.Create(ctx, s, metav1.CreateOptions{FieldManager: k.Manager})
	} else {
		s, err = secrets.Update(ctx, s, metav1.UpdateOptions{FieldManager: k.Manager})
	}
	switch {
	case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err):
		return fmt.Errorf("keeping %s for a rollback: somebody else migrates it at this moment: wait for that, and run the same again (%w)", r.Object, err)
	case err != nil:
		return fmt.Errorf("keeping %s for a rollback: %w", r.Object, err)
	}
	r.stored = s.ResourceVersion
	return nil
}

// Forget removes a record.
func (k Store) Forget(ctx context.Context, r *Record) error {
	err := k.Kube.CoreV1().Secrets(r.Namespace).Delete(ctx, r.name(), metav1.DeleteOptions{})
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

// Same reports whether two objects are equal, but for what the server manages.
func Same(a, b *unstructured.Unstructured) bool {
	return a != nil && b != nil && bytes.Equal(canonical(a), canonical(b))
}

// Undo returns o without what migration changed, and with what others did.
func (r *Record) Undo(o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
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
