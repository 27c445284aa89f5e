// Package demo plays the story of the README on a running lab: two pods read
// the same secret through two doors and hold none themselves, and whoever has
// no right to it is refused with a reason.
//
//	Story.Play
//	   the manifests of mission document 001    AzureIdentity, AzureIdentityBinding
//	   the set-up of mission document 003       service account, federated credential
//	   a pod per row                            its own report becomes a Row
package demo

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	aadv1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
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
	reasonIssued         = "TokenIssued" // of the event that records an issuance
	doorIMDS             = "1 IMDS"
	doorEntra            = "2 Entra direct"
	secretRead           = "secret read"
	refused              = "refused"
)

// A Story is played on one lab. All fields must be set.
type Story struct {
	Kube      kubernetes.Interface
	Objects   client.Client                            // for the custom resources
	As        func(user string) (client.Client, error) // the same as somebody else
	Azure     Azure
	Principal estate.Credential // of the application that a pod acts as

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
		if _, err := fmt.Fprintln(w, "  "+record); err != nil {
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
	if err := s.setUpCluster(ctx, noRole); err != nil {
		return Result{}, err
	}
	result := Result{Simulated: s.Simulated}
	for _, scene := range s.scenes() {
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

func (s *Story) setUpCluster(ctx context.Context, noRole Identity) error {
	podIdentity, err := s.Azure.Identity(ctx, estate.PodIdentity)
	if err != nil {
		return err
	}
	workloadIdentity, err := s.Azure.Identity(ctx, estate.WorkloadIdentity)
	if err != nil {
		return err
	}
	var objects []client.Object
	for _, m := range []struct {
		file   string
		values map[string]string
	}{
		{"azureidentity.yaml", s.identityValues(podIdentity)},
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
	objects = append(objects,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: samanNamespace}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
			Name: samanAccount, Namespace: samanNamespace,
			Annotations: map[string]string{workloadidentity.AnnotationClientID: workloadIdentity.ClientID},
			Labels:      map[string]string{workloadidentity.LabelUse: "true"},
		}},
	)
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
	if err := s.removePod(ctx, c.pod); err != nil {
		return c.row, err
	}
	r, created, err := runPod(ctx, s.Kube, c.pod)
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
	pods := s.Kube.CoreV1().Pods(pod.Namespace)
	old, err := pods.Get(ctx, pod.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for an earlier pod %s: %w", pod.Name, err)
	}
	w, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + pod.Name, ResourceVersion: old.ResourceVersion})
	if err != nil {
		return fmt.Errorf("watching the earlier pod %s: %w", pod.Name, err)
	}
	defer w.Stop()
	if err := pods.Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting the earlier pod %s: %w", pod.Name, err)
	}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the earlier pod %s to go: %w", pod.Name, ctx.Err())
		case e, open := <-w.ResultChan():
			if !open || e.Type == "DELETED" {
				return nil
			}
		}
	}
}
