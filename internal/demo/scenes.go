package demo

import (
	"context"
	"slices"
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
	// job makes the pod a run of a CronJob of the pod's namespace; pod only names it.
	job string
	// refusal is a text that the refusal must contain; empty where the pod is
	// to read the secret.
	refusal string
}

func (s *Story) scenes(who identities) []scene {
	resource := strings.TrimPrefix(s.VaultURL, "https://") + "/secrets/" + s.Secret
	imds := []string{"imds", "--vault", s.VaultURL, "--secret", s.Secret}
	once := append(imds, "--wait=0s") // asking again does not help
	row := func(name, identity, want string) Row {
		return Row{Door: doorIMDS, Pod: metav1.NamespaceDefault + "/" + name, Identity: identity, Resource: resource, Want: want}
	}
	labelled := func(name, label string, args []string) *corev1.Pod {
		return pod(metav1.NamespaceDefault, name, "", map[string]string{bindingLabel: label}, args...)
	}
	return append([]scene{
		{
			row: row(littlePod, estate.PodIdentity, secretRead),
			pod: labelled(littlePod, littlePodLabel, imds),
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
	}, slices.Concat(s.federated(who, resource), s.migrated(resource))...)
}

// federated are the scenes of door 2, in document 002's words.
func (s *Story) federated(who identities, resource string) []scene {
	row := func(door, name, identity string) Row {
		return Row{Door: door, Pod: samanNamespace + "/" + name, Identity: identity, Resource: resource, Want: secretRead}
	}
	labelled := func(name, account, verb string) *corev1.Pod {
		return pod(samanNamespace, name, account, map[string]string{workloadidentity.LabelUse: "true"}, verb, "--vault", s.VaultURL, "--secret", s.Secret)
	}
	// Which of its service account's identities a pod uses is up to the pod.
	other := labelled("one-to-many", samanAccount, "sdk")
	other.Spec.Containers[0].Env = []corev1.EnvVar{{Name: workloadidentity.EnvClientID, Value: who.pod.ClientID}}
	// An application that knows nothing but the metadata service.
	old := labelled("knows-only-imds", samanAccount, "imds")
	old.Annotations = map[string]string{workloadidentity.AnnotationInjectProxySidecar: "true"}
	return []scene{
		{
			row: row(doorEntra, "one-to-one", estate.WorkloadIdentity),
			pod: labelled("one-to-one", samanAccount, "sdk"),
		},
		{
			row:    row(doorEntra, "many-to-one", estate.WorkloadIdentity),
			tells:  "the federation controller makes " + batchAccount + " a second service account of " + estate.WorkloadIdentity,
			before: func(ctx context.Context) error { return s.usable(ctx, batchAccount, who.workload) },
			pod:    labelled("many-to-one", batchAccount, "sdk"),
		},
		{
			row:    row(doorEntra, "one-to-many", estate.PodIdentity),
			tells:  "the federation controller gives " + samanAccount + " a second identity, " + estate.PodIdentity,
			before: func(ctx context.Context) error { return s.usable(ctx, samanAccount, who.pod) },
			pod:    other,
		},
		{
			row: row(doorProxy, "knows-only-imds", estate.WorkloadIdentity),
			pod: old,
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
				Name: workloadContainer, Image: workloadImage, ImagePullPolicy: corev1.PullIfNotPresent, Args: args,
			}},
		},
	}
}
