package binding_test

import (
	"fmt"
	"testing"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/schedule"
	"github.com/lanyard-id/lanyard/internal/schedule/scheduletest"
)

// Every pod has an identity and a binding of its own, and the world holds those
// of all: 110 is what a node may run, 5,000 a large cluster. The node agent's
// indexes hand Select a world of one; the others are for who asks without.
func BenchmarkSelect(b *testing.B) {
	for _, n := range []int{1, 110, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var pods []binding.Pod
			var bindings []*v1.AzureIdentityBinding
			var assigned []*v1.AzureAssignedIdentity
			identities := map[string]*v1.AzureIdentity{}
			for i := range n {
				name := fmt.Sprint("app-", i)
				pod := binding.Pod{Namespace: "shop", Name: name, Node: "n1", Labels: map[string]string{v1.BindingLabel: name}}
				id := identity("shop/" + name)
				pods, identities[name] = append(pods, pod), id
				bindings = append(bindings, bind("shop/"+name, name, name))
				assigned = append(assigned, assign(pod, id, v1.AssignedIDAssigned))
			}
			w := binding.World{Bindings: bindings, Assigned: assigned, Identity: func(_, name string) *v1.AzureIdentity { return identities[name] }}
			pod, now := pods[n/2], time.Unix(1700000000, 0)
			want := identities[pod.Name]
			selector := binding.Selector{ClientID: want.Spec.ClientID}
			b.ReportAllocs()
			for b.Loop() {
				got, err := binding.Select(pod, w, selector, now)
				if err != nil || got.Identity != want {
					b.Fatal(got, err)
				}
			}
		})
	}
}

// What a schedule costs a request when the calendar is remembered.
func BenchmarkSelectScheduled(b *testing.B) {
	for _, text := range []string{"Europe/Berlin; mon,tue,wed,thu,fri 09:00-17:00", "Europe/Berlin; 00:00-24:00", "Europe/Berlin; cron * * * * * for 1m"} {
		b.Run(text, func(b *testing.B) {
			one := bind("a/b", "l", "i")
			one.Spec.Schedule = scheduletest.Parse(b, text)
			w := world(ids{identity("a/i")}, bindings{one})
			w.Managed, w.Calendars = true, &binding.Calendars{}
			p, now := pod("a/p", "l"), instant(b, "2026-11-20T09:00Z")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := binding.Select(p, w, binding.Selector{}, now); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(text+" (compiled anew)", func(b *testing.B) {
			s := scheduletest.Parse(b, text)
			now := instant(b, "2026-11-20T09:00Z")
			for b.Loop() {
				c, err := schedule.New(s)
				if err != nil {
					b.Fatal(err)
				}
				c.At(now)
			}
		})
	}
}
