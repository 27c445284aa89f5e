package controlplane

import "testing"

func TestStepsComeWithoutTheServersOwnTime(t *testing.T) {
	for step, want := range map[string]string{
		"   0.8 s  etcd is ready\n": "etcd is ready",
		"12.0 s  stopping":          "stopping",
		"waiting 3 s more":          "waiting 3 s more",
		"stopped":                   "stopped",
		"":                          "",
	} {
		if got := untimed(step); got != want {
			t.Errorf("%q: got %q, want %q", step, got, want)
		}
	}
}
