package load

import (
	"testing"
	"time"
)

func TestTheCostIsInUnitsOfTheBareServer(t *testing.T) {
	c := Comparison{Ours: Result{Requests: 100, CPU: 4 * time.Millisecond}, Bare: Result{Requests: 200, CPU: 4 * time.Millisecond}}
	if c.Cost() != 2 {
		t.Errorf("40 µs against 20 µs is %g", c.Cost())
	}
}
