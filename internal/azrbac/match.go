package azrbac

import (
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// Match reports whether an action matches the pattern of a role definition. Case is ignored. A "*" stands for any run
// of characters, slashes too. A "*" that is a whole segment ("/*/") may also stand for no segment at all, because
// Managed Identity Operator's "userAssignedIdentities/*/assign/action" must allow "userAssignedIdentities/assign/action",
// the action that is checked when an identity is assigned.
func Match(pattern, action string) bool {
	pattern, action = azure.Fold(pattern), azure.Fold(action)
	if !strings.Contains(pattern, "*") {
		return pattern == action
	}
	// now[i] tells how far pattern[:i] matches what was read. One pass, whatever the pattern: at most
	// len(pattern)*len(action) steps.
	now, next := make(positions, len(pattern)+1), make(positions, len(pattern)+1)
	now.enter(pattern, 0)
	for i := range len(action) {
		clear(next)
		for j, p := range now[:len(pattern)] {
			switch {
			case p == 0:
			case pattern[j] == '*':
				next[j] |= inStar
				next.enter(pattern, j+1)
			case pattern[j] == action[i]:
				next.enter(pattern, j+1)
			}
		}
		now, next = next, now
	}
	return now[len(pattern)] != 0
}

// positions is the set of places in a pattern at which matching may continue.
type positions []uint8

const (
	entered uint8 = 1 << iota // by what stands before
	inStar                    // the "*" here has taken a character, so its segment is no longer absent
)

// enter adds position i and those reachable from it without reading: past a "*", and past the "*/" of a "/*/".
func (p positions) enter(pattern string, i int) {
	for ; p[i]&entered == 0; i++ {
		p[i] |= entered
		if i == len(pattern) || pattern[i] != '*' {
			return
		}
		if i > 0 && pattern[i-1] == '/' && strings.HasPrefix(pattern[i+1:], "/") {
			p.enter(pattern, i+2)
		}
	}
}
