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
	Kube    kubernetes.Interface
	Objects client.Client // for the custom resources
	Azure   Azure

	Issuer             string // of the cluster's service-account tokens
	VaultURL           string
	Secret             string // its name in the vault
	Simulated          bool   // whether the node is a simulation
	ControllerObjectID string // the principal that mic acts as: it needs Managed Identity Operator on every identity

	Step func(format string, args ...any) // tells what is being done now
}

// A scene is a pod and what the story expects of it.
type scene struct {
	row Row
	pod *corev1.Pod
	// refusal is a text that the refusal must contain; empty where the pod is
	// to read the secret.
	refusal string
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
		s.Step("door %s: the pod %s asks for a token and reads the secret", scene.row.Door, scene.row.Pod)
		row, err := s.play(ctx, scene)
		if err != nil {
			return result, fmt.Errorf("door %s: %w", scene.row.Door, err)
		}
		result.Rows = append(result.Rows, row)
	}
	s.Step("reading what was recorded on the bindings")
	result.Records, err = s.records(ctx, []string{littlePodBindingName, noRoleBinding})
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
	return nil
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

func (s *Story) scenes() []scene {
	resource := strings.TrimPrefix(s.VaultURL, "https://") + "/secrets/" + s.Secret
	imds := []string{"imds", "--vault", s.VaultURL, "--secret", s.Secret}
	return []scene{
		{
			row: Row{Door: doorIMDS, Pod: "default/" + littlePod, Identity: estate.PodIdentity, Resource: resource, Want: secretRead},
			pod: pod("default", littlePod, "", map[string]string{bindingLabel: littlePodLabel}, imds...),
		},
		{
			row: Row{Door: doorEntra, Pod: samanNamespace + "/saman-app", Identity: estate.WorkloadIdentity, Resource: resource, Want: secretRead},
			pod: pod(samanNamespace, "saman-app", samanAccount, map[string]string{workloadidentity.LabelUse: "true"},
				"sdk", "--vault", s.VaultURL, "--secret", s.Secret),
		},
		{
			row:     Row{Door: doorIMDS, Pod: "default/no-label", Identity: "none", Resource: resource, Want: refused},
			pod:     pod("default", "no-label", "", nil, append(imds, "--wait=0s")...), // asking again does not help
			refusal: bindingLabel,
		},
		{
			row:     Row{Door: doorIMDS, Pod: "default/no-role", Identity: NoRoleIdentity, Resource: resource, Want: refused},
			pod:     pod("default", "no-role", "", map[string]string{bindingLabel: NoRoleIdentity}, imds...),
			refusal: "ForbiddenByRbac",
		},
	}
}

// pod is an ordinary pod of a customer: the workload's image and nothing about identity but the label and the account.
func pod(namespace, name, account string, labels map[string]string, args ...string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: labels},
		Spec: corev1.PodSpec{
			ServiceAccountName:            account,
			RestartPolicy:                 corev1.RestartPolicyNever,
			TerminationGracePeriodSeconds: new(int64),
			Containers: []corev1.Container{{
				Name: "workload", Image: workloadImage, ImagePullPolicy: corev1.PullIfNotPresent, Args: args,
			}},
		},
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
