package processnode

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestReferencesInArgumentsAreReplaced(t *testing.T) {
	values := map[string]string{"HOST_IP": "10.250.0.1", "a.b-c": "odd"}
	for in, want := range map[string]string{
		"--url=http://$(HOST_IP):80": "--url=http://10.250.0.1:80",
		"$(a.b-c)$(HOST_IP)":         "odd10.250.0.1",
		"$(UNKNOWN) stays":           "$(UNKNOWN) stays",
		"$$(HOST_IP) is escaped":     "$(HOST_IP) is escaped",
		"$HOST_IP is for a shell":    "$HOST_IP is for a shell",
	} {
		if got := expand(in, values); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestWhatIsCloserToTheContainerSaysWhoItRunsAs(t *testing.T) {
	one, two := int64(1), int64(2)
	for _, c := range []struct {
		name  string
		image string
		pod   *corev1.PodSecurityContext
		own   *corev1.SecurityContext
		want  string
	}{
		{"nobody says anything", "", nil, nil, "none none"},
		{"the image says", "65532:65533", nil, nil, "65532 65533"},
		{"the pod overrides the image", "65532:65533", &corev1.PodSecurityContext{RunAsUser: &one}, nil, "1 65533"},
		{
			"the container overrides the pod", "65532:65533",
			&corev1.PodSecurityContext{RunAsUser: &one, RunAsGroup: &one}, &corev1.SecurityContext{RunAsUser: &two}, "2 1",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			user, group := identity(c.image, c.pod, c.own)
			if got := text(user) + " " + text(group); got != c.want {
				t.Errorf("runs as %s, want %s", got, c.want)
			}
		})
	}
}

func text(n *int64) string {
	if n == nil {
		return "none"
	}
	return fmt.Sprint(*n)
}

func TestOnlyReadyEndpointsOfTheSamePortAreUsed(t *testing.T) {
	tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
	yes, no, https, metrics := true, false, "https", "metrics"
	port, other := int32(9443), int32(8080)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "webhook"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.7.7", Ports: []corev1.ServicePort{
			{Name: https, Port: 443, Protocol: tcp}, {Name: "quic", Port: 443, Protocol: udp}, {Name: "none", Port: 80, Protocol: tcp},
		}},
	}
	headless := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "h"}, Spec: corev1.ServiceSpec{ClusterIP: "None"}}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Labels: map[string]string{discoveryv1.LabelServiceName: "webhook"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &https, Port: &port}, {Name: &metrics, Port: &other}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.244.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
			{Addresses: []string{"10.244.0.3"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
			{Addresses: []string{"10.244.0.4"}},
		},
	}
	foreign := slice.DeepCopy()
	foreign.Namespace = "other"
	foreign.Endpoints[0].Addresses[0] = "10.244.0.9"
	got := new(Node).backends([]*corev1.Service{service, headless}, []*discoveryv1.EndpointSlice{slice, foreign})
	want := map[string][]string{"10.96.7.7:443": {"10.244.0.2:9443", "10.244.0.4:9443"}, "10.96.7.7:80": {}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("backends (-want +got):\n%s", diff)
	}
}

// nmi takes a pod for its address: one that is used again at once could still
// stand for the pod that had it before.
func TestAddressesAreTakenInTurn(t *testing.T) {
	bridge := netip.MustParseAddr("10.0.0.1")
	n := &Node{Config: Config{Pods: netip.MustParsePrefix("10.0.0.0/29")}, taken: map[netip.Addr]bool{bridge: true}}
	take := func() string {
		a, err := n.address()
		if err != nil {
			return err.Error()
		}
		return a.String()
	}
	var got []string
	for range 7 { // each is given back before the next one is taken
		a, err := n.address()
		if err != nil {
			t.Fatal(err)
		}
		n.give(a)
		got = append(got, a.String())
	}
	want := []string{"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got = nil
	for range 5 {
		got = append(got, take())
	}
	if diff := cmp.Diff([]string{"10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3"}, got); diff != "" {
		t.Errorf("until all are taken (-want +got):\n%s", diff)
	}
	if got := take(); !strings.Contains(got, "all addresses in 10.0.0.0/29 are taken") {
		t.Errorf("one more: %s", got)
	}
	n.give(netip.MustParseAddr("10.0.0.5"))
	if got := take(); got != "10.0.0.5" {
		t.Errorf("the only free one: %s", got)
	}
}
