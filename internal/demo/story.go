// Package demo plays the story of the README on a running lab: pods read the
// same secret through two doors and hold none themselves, whoever has no right
// to it is refused with a reason, and a workload moves from the one door to the
// other without being told.
//
//	Story.Play
//	   the manifests of mission document 001    AzureIdentity, AzureIdentityBinding
//	   the set-up of mission document 003       service account, federated credential
//	   document 002's three relations           a FederationPolicy, annotated service accounts
//	   document 002's migration                 a CronJob with v1's label
//	   a pod per row                            its own report becomes a Row
package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	aadv1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/estate"
)

// Names of the story: those of the mission's documents where they name things.
const (
	NoRoleIdentity = "no-role-id" // ours: an identity without any role

	littlePod            = "test-id-pod"                  // document 001
	littlePodLabel       = "little-pod-binding"           // document 001: the label's value
	littlePodBindingName = "vpl-id-to-little-pod"         // document 001
	noRoleBinding        = "demo1-azure-identity-binding" // document 001
	samanNamespace       = "saman"                        // document 003
	samanAccount         = "saman-identity-poc"           // document 003
	samanCredential      = "saman-identity-poc-federated-credential"
	bindingLabel         = "aadpodidbinding"
	workloadImage        = "lanyard/workload:dev"
	workloadContainer    = "workload"
	reasonIssued         = "TokenIssued" // of the event that records an issuance
	doorIMDS             = "1 IMDS"
	doorEntra            = "2 Entra direct"
	doorProxy            = "2 by proxy"
	secretRead           = "secret read"
	refused              = "refused"
)

// A Story is played on one lab. All fields must be set.
type Story struct {
	Kube      kubernetes.Interface
	Config    *rest.Config                             // of the cluster
	Objects   client.WithWatch                         // for the custom resources
	As        func(user string) (client.Client, error) // the same as somebody else
	Azure     Azure
	Principal estate.Credential // of the application that a pod acts as
	HTTP      *http.Client      // reaches Azure

	Issuer             string // of the cluster's service-account tokens
	VaultURL           string
	Secret             string // its name in the vault
	Simulated          bool   // whether the node is a simulation
	ControllerObjectID string // the principal that mic acts as: it needs Managed Identity Operator on every identity

	Step func(format string, args ...any) // tells what is being done now
}

// A Result is what came of the story.
type Result struct {
	// Simulated says that the node was a simulation: pods were local processes.
	Simulated bool  `json:"simulated"`
	Rows      []Row `json:"rows"`
	// Records are the events on the AzureIdentityBindings that tell of each
	// issuance and refusal.
	Records []string `json:"records"`
	// Federations are what the federation controller says of each service
	// account that it connected with an identity.
	Federations []string `json:"federations"`
}

// Write writes r for people: the table, and what was recorded.
func (r Result) Write(w io.Writer) error {
	if err := WriteTable(w, r.Rows); err != nil {
		return err
	}
	if r.Simulated {
		fmt.Fprintln(w, "\nThe node was simulated: the pods were local processes in namespaces of their own.")
	}
	fmt.Fprintln(w, "\nwhy the others were refused:")
	for _, row := range r.Rows {
		if row.Reason != "" {
			fmt.Fprintf(w, "  %s: %s\n", row.Pod, readable(row.Reason))
		}
	}
	fmt.Fprintln(w, "\nrecorded on the bindings:")
	for _, record := range r.Records {
		fmt.Fprintln(w, "  "+record)
	}
	fmt.Fprintln(w, "\nservice accounts and the identities that they were connected with:")
	for _, f := range r.Federations {
		if _, err := fmt.Fprintln(w, "  "+f); err != nil {
			return err
		}
	}
	return nil
}

// Play plays the story once. It fails when the story could not be played; a
// row that is not as expected is not a failure but a Row with OK false.
// Playing it again on the same lab gives the same rows.
func (s *Story) Play(ctx context.Context) (Result, error) {
	s.Step("creating the identity %s and the federated credential %s in Azure", NoRoleIdentity, samanCredential)
	noRole, err := s.setUpAzure(ctx)
	if err != nil {
		return Result{}, err
	}
	s.Step("applying the manifests of door 1 and door 2")
	who, err := s.identities(ctx)
	if err != nil {
		return Result{}, err
	}
	if err := s.setUpCluster(ctx, who, noRole); err != nil {
		return Result{}, err
	}
	result := Result{Simulated: s.Simulated}
	for _, scene := range s.scenes(who) {
		if scene.before != nil {
			s.Step("%s", scene.tells)
			if err := scene.before(ctx); err != nil {
				return result, err
			}
		}
		s.Step("door %s: the pod %s asks for a token and reads the secret", scene.row.Door, scene.row.Pod)
		row, err := s.play(ctx, scene)
		if err != nil {
			return result, fmt.Errorf("door %s: %w", scene.row.Door, err)
		}
		result.Rows = append(result.Rows, row)
	}
	s.Step("reading what was recorded on the bindings")
	result.Records, err = s.records(ctx, []string{littlePodBindingName, estate.PasswordPrincipal, nightlyBinding, breakGlassBinding, noRoleBinding})
	if err != nil {
		return result, err
	}
	result.Federations, err = s.federations(ctx)
	return result, err
}

// setUpAzure does what documents 001 and 003 do with az and Terraform.
func (s *Story) setUpAzure(ctx context.Context) (noRole Identity, err error) {
	noRole, err = s.Azure.CreateIdentity(ctx, NoRoleIdentity)
	if err != nil {
		return Identity{}, err
	}
	// Document 001's chain of trust: the cluster's own principal must be allowed to hand out the identity.
	if err := s.Azure.Assign(ctx, noRole.ResourceID, azure.RoleManagedIdentityOperator, s.ControllerObjectID); err != nil {
		return Identity{}, err
	}
	subject := "system:serviceaccount:" + samanNamespace + ":" + samanAccount
	return noRole, s.Azure.Federate(ctx, estate.WorkloadIdentity, samanCredential, s.Issuer, subject)
}

// identities are those that the documents give to pods.
type identities struct{ pod, workload Identity }

func (s *Story) identities(ctx context.Context) (who identities, err error) {
	if who.pod, err = s.Azure.Identity(ctx, estate.PodIdentity); err != nil {
		return who, err
	}
	who.workload, err = s.Azure.Identity(ctx, estate.WorkloadIdentity)
	return who, err
}

func (s *Story) setUpCluster(ctx context.Context, who identities, noRole Identity) error {
	var objects []client.Object
	for _, m := range []struct {
		file   string
		values map[string]string
	}{
		{"azureidentity.yaml", s.identityValues(who.pod)},
		{"vpl-id-to-little-pod.yaml", nil},
		{"azureidentity.yaml", s.identityValues(noRole)},
		{"azureidentitybinding.yaml", map[string]string{"a-idname": noRole.Name, "label value to match": noRole.Name}},
	} {
		u, err := manifest(m.file, m.values)
		if err != nil {
			return err
		}
		u.SetNamespace(metav1.NamespaceDefault)
		objects = append(objects, u)
	}
	objects = append(objects, s.servicePrincipal()...)
	objects = append(objects, limitedBindings(time.Now())...)
	objects = append(objects, federationObjects(who.workload, who.pod)...)
	objects = append(objects, legacyObjects([]string{"imds", "--vault", s.VaultURL, "--secret", s.Secret})...)
	for _, o := range objects {
		if err := s.Objects.Create(ctx, o); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("creating %s %s: %w", o.GetObjectKind().GroupVersionKind().Kind, o.GetName(), err)
		}
	}
	// An earlier play may have left its doors open.
	if err := s.setWindow(ctx, openLater(time.Now())); err != nil {
		return err
	}
	return s.forgetRequest(ctx)
}

// servicePrincipal is what document 004 promises: an application with a
// password behind the same endpoint, its secret beside the identity and never
// in the pod.
func (s *Story) servicePrincipal() []client.Object {
	const name = estate.PasswordPrincipal
	meta := metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name}
	return []client.Object{
		&corev1.Secret{ObjectMeta: meta, StringData: map[string]string{"clientSecret": string(s.Principal.Password)}},
		&aadv1.AzureIdentity{ObjectMeta: meta, Spec: aadv1.AzureIdentitySpec{
			Type: aadv1.ServicePrincipal, TenantID: s.Principal.TenantID, ClientID: s.Principal.ClientID,
			ClientPassword: aadv1.SecretReference{Namespace: metav1.NamespaceDefault, Name: name},
		}},
		&aadv1.AzureIdentityBinding{ObjectMeta: meta, Spec: aadv1.AzureIdentityBindingSpec{AzureIdentity: name, Selector: name}},
	}
}

// identityValues fill the placeholders of document 001's AzureIdentity.
func (s *Story) identityValues(i Identity) map[string]string {
	return map[string]string{
		"a-idname":                     i.Name,
		"subid":                        s.Azure.SubscriptionID,
		"resourcegroup":                s.Azure.ResourceGroup,
		"managedidentity-resourcename": i.Name,
		"clientid":                     i.ClientID,
	}
}

func (s *Story) play(ctx context.Context, c scene) (Row, error) {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	create := func(ctx context.Context) (*corev1.Pod, error) {
		return s.Kube.CoreV1().Pods(c.pod.Namespace).Create(ctx, c.pod, metav1.CreateOptions{})
	}
	remove := s.removePod
	if c.job != "" {
		create, remove = func(ctx context.Context) (*corev1.Pod, error) { return s.runJob(ctx, c.pod, c.job) }, s.removeJob
	}
	if err := remove(ctx, c.pod); err != nil {
		return c.row, err
	}
	r, created, err := runPod(ctx, s.Kube, create)
	if err != nil {
		return c.row, err
	}
	return judge(c, r, created), nil
}

// judge compares what a pod reported with what the story expects.
func judge(c scene, r report, created time.Time) Row {
	row := c.row
	if !r.FirstToken.IsZero() {
		row.FirstToken = r.FirstToken.Sub(created)
		row.SecondToken = time.Duration(r.SecondTokenMillis * float64(time.Millisecond))
	}
	if r.OK {
		row.Result = secretRead
		row.OK = row.Want == secretRead && row.FirstToken > 0
		return row
	}
	row.Result = fmt.Sprintf("refused (%d)", r.Status)
	row.Reason = r.Error
	row.OK = row.Want == refused && strings.Contains(r.Error, c.refusal)
	return row
}

// removePod deletes what an earlier play left, so that this one starts anew.
func (s *Story) removePod(ctx context.Context, pod *corev1.Pod) error {
	return s.remove(ctx, &corev1.PodList{}, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}})
}

// remove deletes an object and waits until it is gone. The list is of its kind.
func (s *Story) remove(ctx context.Context, list client.ObjectList, o client.Object) error {
	err := s.Objects.Get(ctx, client.ObjectKeyFromObject(o), o)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for an earlier %s: %w", o.GetName(), err)
	}
	w, err := s.Objects.Watch(ctx, list, client.InNamespace(o.GetNamespace()), client.MatchingFields{"metadata.name": o.GetName()},
		&client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: o.GetResourceVersion()}})
	if err != nil {
		return fmt.Errorf("watching the earlier %s: %w", o.GetName(), err)
	}
	defer w.Stop()
	if err := s.Objects.Delete(ctx, o, client.PropagationPolicy(metav1.DeletePropagationForeground)); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting the earlier %s: %w", o.GetName(), err)
	}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the earlier %s to go: %w", o.GetName(), ctx.Err())
		case e, open := <-w.ResultChan():
			if !open || e.Type == watch.Deleted {
				return nil
			}
		}
	}
}
