package demo

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/estate"
)

// A scene is a pod and what the story expects of it.
type scene struct {
	row Row
	// before is what somebody does before the pod is created; nil means nothing.
	before func(ctx context.Context) error
	tells  string // what before does, for people
	pod    *corev1.Pod
	// refusal is a text that the refusal must contain; empty where the pod is
	// to read the secret.
	refusal string
}

func (s *Story) scenes() []scene {
	resource := strings.TrimPrefix(s.VaultURL, "https://") + "/secrets/" + s.Secret
	imds := []string{"imds", "--vault", s.VaultURL, "--secret", s.Secret}
	once := append(imds, "--wait=0s") // asking again does not help
	row := func(name, identity, want string) Row {
		return Row{Door: doorIMDS, Pod: metav1.NamespaceDefault + "/" + name, Identity: identity, Resource: resource, Want: want}
	}
	labelled := func(name, label string, args []string) *corev1.Pod {
		return pod(metav1.NamespaceDefault, name, "", map[string]string{bindingLabel: label}, args...)
	}
	return []scene{
		{
			row: row(littlePod, estate.PodIdentity, secretRead),
			pod: labelled(littlePod, littlePodLabel, imds),
		},
		{
			row: Row{Door: doorEntra, Pod: samanNamespace + "/saman-app", Identity: estate.WorkloadIdentity, Resource: resource, Want: secretRead},
			pod: pod(samanNamespace, "saman-app", samanAccount, map[string]string{workloadidentity.LabelUse: "true"},
				"sdk", "--vault", s.VaultURL, "--secret", s.Secret),
		},
		{
			row: row("service-principal", estate.PasswordPrincipal, secretRead),
			pod: labelled("service-principal", estate.PasswordPrincipal, imds),
		},
		{
			row:     row("no-label", "none", refused),
			pod:     pod(metav1.NamespaceDefault, "no-label", "", nil, once...),
			refusal: bindingLabel,
		},
		{
			row:     row("no-role", NoRoleIdentity, refused),
			pod:     labelled("no-role", NoRoleIdentity, imds),
			refusal: "ForbiddenByRbac",
		},
		{
			row:     row("nightly-report", estate.PodIdentity, refused),
			pod:     labelled("nightly-report", nightlyBinding, once),
			refusal: "opens",
		},
		{
			row:    row("nightly-report", estate.PodIdentity, secretRead),
			tells:  "the window of the binding " + nightlyBinding + " is moved to now",
			before: func(ctx context.Context) error { return s.setWindow(ctx, openNow()) },
			pod:    labelled("nightly-report", nightlyBinding, imds),
		},
		{
			row:     row("break-glass", estate.PodIdentity, refused),
			pod:     labelled("break-glass", breakGlassBinding, once),
			refusal: "only on request",
		},
		{
			row:    row("break-glass", estate.PodIdentity, secretRead),
			tells:  requester + " asks for the binding " + breakGlassBinding + ", and " + approver + " approves",
			before: s.requestAndApprove,
			pod:    labelled("break-glass", breakGlassBinding, imds),
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
