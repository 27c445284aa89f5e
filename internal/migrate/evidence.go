package migrate

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A Request is a request for a token that nmi recorded.
type Request struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	UID       string `json:"uid"`       // of the pod; empty if the record does not tell
	Agent     string `json:"userAgent"` // of the program; empty if the record does not tell
	Issued    string `json:"identity"`  // namespace/name of the AzureIdentity that it got a token of; empty if it got none
}

// maxLine is the longest audit line that is read.
const maxLine = 256 << 10

// ReadAudit reads the audit lines of nmi's log, each Request once; other lines
// are passed over.
func ReadAudit(r io.Reader) ([]Request, error) {
	seen := map[Request]bool{}
	lines := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) { // not one of nmi's
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = lines.ReadSlice('\n')
			}
			line = nil
		}
		var l struct {
			Message string `json:"msg"`
			Caller  string `json:"caller"`
			Outcome string `json:"decision"`
			Request
		}
		if json.Unmarshal(line, &l) == nil && l.Message == "audit" && l.Namespace != "" && l.Pod != "" && l.Caller == "" {
			if l.Outcome != "issued" {
				l.Issued = ""
			}
			seen[l.Request] = true
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the audit of nmi: %w", err)
		}
	}
	all := make([]Request, 0, len(seen))
	for q := range seen {
		all = append(all, q)
	}
	slices.SortFunc(all, func(a, b Request) int {
		return slices.Compare([]string{a.Namespace, a.Pod, a.UID, a.Agent, a.Issued}, []string{b.Namespace, b.Pod, b.UID, b.Agent, b.Issued})
	})
	return all, nil
}

// sdk finds Azure's SDKs in a user agent, with major and minor version.
var sdk = regexp.MustCompile(`(?i)\bazsdk-(go-azidentity|net-identity|python-identity|js-identity|java-(?:azure-)?identity)/v?(\d{1,6})\.(\d{1,6})`)

// since is the first release of each SDK whose DefaultAzureCredential reads the
// projected token.
func since(name string) (major, minor int) {
	switch strings.ToLower(name) {
	case "go-azidentity":
		return 1, 3
	case "python-identity":
		return 1, 13
	case "js-identity":
		return 3, 2
	default: // .NET and Java
		return 1, 9
	}
}

// knowsWorkloadIdentity reports whether a program with this user agent can use
// the projected token.
func knowsWorkloadIdentity(agent string) bool {
	m := sdk.FindStringSubmatch(agent)
	if m == nil {
		return false
	}
	major, err1 := strconv.Atoi(m[2])
	minor, err2 := strconv.Atoi(m[3])
	wantMajor, wantMinor := since(m[1])
	return err1 == nil && err2 == nil && (major > wantMajor || major == wantMajor && minor >= wantMinor)
}

// proxy decides whether a workload gets the proxy sidecar, and says why.
func (p *planner) proxy(i *item) (inject bool, why string) {
	for _, m := range []map[string]string{i.object.GetAnnotations(), i.template.Annotations()} {
		switch v, ok := m[NeedsIMDS]; {
		case !ok:
		case strings.EqualFold(v, "true"):
			return true, "its annotation " + NeedsIMDS + " says so"
		case strings.EqualFold(v, "false"):
			return false, "its annotation " + NeedsIMDS + " says so"
		default:
			return true, fmt.Sprintf("its annotation %s is %q, neither true nor false", NeedsIMDS, v)
		}
	}
	switch p.options.Proxy {
	case ProxyAlways:
		return true, "--proxy=always"
	case ProxyNever:
		return false, "--proxy=never"
	}
	var agents []string
	silent := false
	for _, q := range p.world.Requests {
		if !p.asked(i, q) {
			continue
		}
		if q.Agent == "" {
			silent = true
		} else if !slices.Contains(agents, q.Agent) {
			agents = append(agents, q.Agent)
		}
	}
	slices.Sort(agents)
	for _, a := range agents {
		if !knowsWorkloadIdentity(a) {
			return true, fmt.Sprintf("it asked the metadata service as %q, which does not know workload identity", short(a))
		}
	}
	switch {
	case len(agents) == 0 || silent:
		return true, "nothing tells how it asks for tokens, and with the proxy every program works; if its Azure SDK knows workload identity, annotate it with " + NeedsIMDS + `: "false"`
	default:
		return false, fmt.Sprintf("it asked as %q, whose DefaultAzureCredential reads the projected token; if it names ManagedIdentityCredential itself, use --proxy=always", short(agents[0]))
	}
}

func short(s string) string {
	const limit = 100
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

// asked reports whether a request came from a pod of the workload: one that is
// there now, or else one whose name its controller gives.
func (p *planner) asked(i *item, q Request) bool {
	if q.Namespace != i.ref.Namespace {
		return false
	}
	if o := p.all[Ref{"Pod", q.Namespace, q.Pod}]; o != nil {
		root, _ := Root(o, p.all)
		return RefOf(root) == i.ref
	}
	return i.ref.Kind != "Pod" && podName(i.ref.Kind).MatchString(q.Pod) && strings.HasPrefix(q.Pod, i.ref.Name+"-") &&
		podName(i.ref.Kind).ReplaceAllString(q.Pod, "") == i.ref.Name
}

// podName is what follows a workload's name in those of its pods.
func podName(kind string) *regexp.Regexp {
	switch kind {
	case "Deployment":
		return deploymentPod
	case "StatefulSet":
		return statefulPod
	case "CronJob":
		return cronPod
	default:
		return plainPod
	}
}

var (
	deploymentPod = regexp.MustCompile(`-[a-z0-9]{5,10}-[a-z0-9]{5}$`)
	statefulPod   = regexp.MustCompile(`-\d+$`)
	cronPod       = regexp.MustCompile(`-\d{5,12}-[a-z0-9]{5}$`)
	plainPod      = regexp.MustCompile(`-[a-z0-9]{5}$`)
)
