//go:build soak

package keyrotation

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/control"
	"github.com/lanyard-id/lanyard/internal/issuer/rotation"
)

// shortest is the shortest life that an API server gives a token. The kubelet
// refreshes it after four fifths.
const shortest = 10 * time.Minute

// refreshes logs which tokens each pod had.
func (j *judge) refreshes(t *testing.T) map[string][]report {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := map[string][]report{}
	for _, s := range j.pods {
		all[s.name] = slices.Clone(s.tokens)
		for _, r := range s.tokens {
			t.Logf("%s at %s: a token of key %.8s, issued %s, for %s", s.name, r.At.UTC().Format(time.TimeOnly), r.KeyID, r.Issued.Format(time.TimeOnly), r.Ends.Sub(r.Issued))
		}
	}
	return all
}

// handwritten are pods as somebody writes them without the webhook, which gives
// no token less than an hour.
func (b *bed) handwritten() corev1.PodTemplateSpec {
	const volume, dir = "token", "/var/run/secrets/tokens"
	return corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		Volumes: []corev1.Volume{{Name: volume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Audience: azure.AudienceExchange, ExpirationSeconds: new(int64(shortest.Seconds())), Path: "token",
			}}},
		}}}},
		Containers: []corev1.Container{{
			VolumeMounts: []corev1.VolumeMount{{Name: volume, MountPath: dir, ReadOnly: true}},
			Env: []corev1.EnvVar{
				{Name: workloadidentity.EnvTenantID, Value: b.Cloud.Tenant.ID}, {Name: workloadidentity.EnvClientID, Value: b.identity.ClientID},
				{Name: workloadidentity.EnvAuthorityHost, Value: "https://" + azure.HostLogin + "/"}, {Name: workloadidentity.EnvFederatedTokenFile, Value: dir + "/token"},
			},
		}},
	}}
}

// Nothing is shortened: the cloud asks for unknown keys once a minute, the
// kubelet refreshes tokens, and the rotation waits until the last of the old key
// has ended. Only the pods of Lanyard itself, whose tokens for the API server live
// for an hour, are replaced.
func TestTheKubeletRefreshesTokensWhileTheKeyIsRotated(t *testing.T) {
	const pods = 6
	b := newBed(t, control.Settings{})
	b.publishFirst(t)
	b.deploy(t, pods, b.handwritten())
	b.untilExchanging(t, pods, "")
	b.rotateTo(t, rotation.Drain, "--cache-wait=90s", "--token-lifetime="+shortest.String())
	b.replace(t)

	began := time.Now()
	s := b.rotate(t, "--cache-wait=90s", "--token-lifetime="+shortest.String())
	t.Logf("the drain and what follows took %.0f s", time.Since(began).Seconds())
	if s.Step != rotation.Done {
		t.Fatalf("the rotation is in step %s", s.Step)
	}
	b.forget()
	names := b.untilExchanging(t, pods, s.New)
	b.check(t)
	b.sound(t)
	tokens := b.refreshes(t)
	if len(tokens) != pods {
		t.Errorf("there were %d pods: they should be the ones of before", len(tokens))
	}
	for _, n := range names {
		had := tokens[n]
		if first, last := had[0], had[len(had)-1]; first.KeyID != s.Old || last.KeyID != s.New || len(had) < 2 {
			t.Errorf("%s had %d tokens, from one of %s to one of %s", n, len(had), first.KeyID, last.KeyID)
		}
	}
}
