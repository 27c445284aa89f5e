package move

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/migrate"
)

// job makes a suspended Job, which has no pods.
func (b *bed) job(t *testing.T, name string) {
	t.Helper()
	suspend := true
	_, err := b.kube.BatchV1().Jobs(b.namespace).Create(t.Context(), &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: batchv1.JobSpec{Suspend: &suspend, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1.BindingLabel: "blue"}},
			Spec:       corev1.PodSpec{ServiceAccountName: "app", RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "main", Image: "x"}}},
		}},
	}, metav1.CreateOptions{})
	must(t, err)
}

func (b *bed) jobGone(t *testing.T, name string) bool {
	t.Helper()
	_, err := b.kube.BatchV1().Jobs(b.namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err != nil
}

func (b *bed) end(t *testing.T, name string) {
	t.Helper()
	background := metav1.DeletePropagationBackground
	must(t, b.kube.BatchV1().Jobs(b.namespace).Delete(t.Context(), name, metav1.DeleteOptions{PropagationPolicy: &background}))
	labtest.Eventually(t, t.Context(), func() error {
		if !b.jobGone(t, name) {
			return errors.New("it is still there")
		}
		return nil
	})
}

func recreating(o *migrate.Options) { o.RecreateJobs = true }

// A Job that has ended goes after its ttlSecondsAfterFinished. Nobody wants its
// work done once more because somebody migrates the next workload, or goes back.
func TestAJobThatHasEndedIsNotDoneAgain(t *testing.T) {
	b := newBed(t)
	b.job(t, "payroll")
	must(t, b.Apply(t.Context(), b.plan(t, recreating)))
	b.end(t, "payroll")
	must(t, b.Resume(t.Context(), migrate.Options{Namespace: b.namespace, RecreateJobs: true}))
	if !b.jobGone(t, "payroll") {
		t.Error("the next apply does its work again")
	}
	must(t, b.back(t, RefuseEdits))
	if !b.jobGone(t, "payroll") {
		t.Error("a rollback does its work again")
	}
}

// A Job that was deleted to be made again, and then the power failed, is not lost.
func TestAJobThatWasLostOnTheWayIsMadeAgain(t *testing.T) {
	b := newBed(t)
	b.job(t, "payroll")
	must(t, b.Apply(t.Context(), b.plan(t, recreating)))
	records, err := b.Records(t.Context(), b.namespace)
	must(t, err)
	for _, r := range records {
		if r.Object.Kind == "Job" {
			r.Remaking = true
			must(t, b.records().Write(t.Context(), r))
		}
	}
	b.end(t, "payroll")
	if err := b.Resume(t.Context(), migrate.Options{Namespace: b.namespace}); err == nil || !strings.Contains(err.Error(), "--recreate-jobs") {
		t.Errorf("without leave to make Jobs: %v", err)
	}
	must(t, b.Resume(t.Context(), migrate.Options{Namespace: b.namespace, RecreateJobs: true}))
	if b.jobGone(t, "payroll") {
		t.Fatal("it is lost")
	}
	must(t, b.back(t, RefuseEdits))
	j, err := b.kube.BatchV1().Jobs(b.namespace).Get(t.Context(), "payroll", metav1.GetOptions{})
	if err != nil || j.Spec.Template.Labels[workloadidentity.LabelUse] != "" {
		t.Errorf("%v, %v", j.Spec.Template.Labels, err)
	}
}

// Pods that still get tokens by what migration made keep it.
func TestWhatPodsStillNeedStays(t *testing.T) {
	b := newBed(t)
	b.deploy(t, "api", "app", "blue")
	before := b.snapshot(t)
	must(t, b.Apply(t.Context(), b.plan(t, nil)))
	_, err := b.kube.CoreV1().Pods(b.namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "run-of-a-cronjob", Labels: map[string]string{workloadidentity.LabelUse: "true"}},
		Spec:       corev1.PodSpec{ServiceAccountName: "app", Containers: []corev1.Container{{Name: "main", Image: "x"}}},
	}, metav1.CreateOptions{})
	must(t, err)
	if err := b.back(t, RefuseEdits); err == nil || !strings.Contains(err.Error(), "pod run-of-a-cronjob runs as service account app") {
		t.Errorf("%v", err)
	}
	if now := b.snapshot(t); now["Deployment/api"] != before["Deployment/api"] || len(b.azure.credentials) != 1 {
		t.Errorf("the deployment is not back, or the pod has lost its credential: %v", now)
	}
	none := int64(0)
	must(t, b.kube.CoreV1().Pods(b.namespace).Delete(t.Context(), "run-of-a-cronjob", metav1.DeleteOptions{GracePeriodSeconds: &none}))
	must(t, b.back(t, RefuseEdits))
	if diff := cmp.Diff(before, b.snapshot(t)); diff != "" {
		t.Error(diff)
	}
}

// Another cluster may have an account of the same name. A record that somebody
// made up in this one does not take its credential.
func TestACredentialOfAnotherClusterIsNotTaken(t *testing.T) {
	b := newBed(t)
	b.deploy(t, "api", "app", "blue")
	must(t, b.Apply(t.Context(), b.plan(t, nil)))
	records, err := b.Records(t.Context(), b.namespace)
	must(t, err)
	theirs := federated.Credential{Name: "theirs", Issuer: "https://production.example/", Subject: federated.Subject(b.namespace, "app"), Audience: workloadidentity.Audience}
	b.azure.credentials = append(b.azure.credentials, theirs)
	for _, r := range records {
		if r.Object.Kind == migrate.KindServiceAccount {
			r.Credentials = append(r.Credentials, migrate.NewCredential{Credential: theirs, Parent: b.azure.parent(), Namespace: b.namespace, ServiceAccount: "app"})
			must(t, b.records().Write(t.Context(), r))
		}
	}
	if err := b.back(t, RefuseEdits); err == nil || !strings.Contains(err.Error(), "https://production.example/") || !strings.Contains(err.Error(), "--issuer") {
		t.Errorf("%v", err)
	}
	if len(b.azure.credentials) == 0 || b.azure.credentials[len(b.azure.credentials)-1] != theirs {
		t.Errorf("%v", b.azure.credentials)
	}
}

// Who lacks a right is told at once, and not after the timeout.
func TestWhatWaitingDoesNotHelpEndsAtOnce(t *testing.T) {
	b := newBed(t)
	b.Timeout = time.Hour
	account := migrate.Account{Namespace: b.namespace, Name: "app", Identities: []migrate.Identity{{AzureIdentity: "blue", Parent: b.azure.parent()}}}
	account.Identities[0].TenantID = ""
	if err := b.usable(t.Context(), migrate.Plan{Audience: workloadidentity.Audience}, account); err == nil || !strings.Contains(err.Error(), "--tenant-id") {
		t.Errorf("%v", err)
	}
	config := rest.CopyConfig(cluster.Config(t))
	config.Impersonate.UserName = "nobody-in-particular"
	var err error
	b.Kube, err = kubernetes.NewForConfig(config)
	must(t, err)
	account.Identities[0].TenantID = tenant
	if err := b.usable(t.Context(), migrate.Plan{Audience: workloadidentity.Audience}, account); err == nil || !strings.Contains(err.Error(), "create on serviceaccounts/token") {
		t.Errorf("%v", err)
	}
}
