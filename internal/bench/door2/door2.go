// Package door2 measures Workload Identity: the webhook and the sidecar, beside
// what azure-workload-identity v1.6 measured (section 4 of the reference on it).
//
//	webhook-start   cmd/webhook behind a front that first is away and then delays GET /version
//	webhook         cmd/webhook and 50,000 service accounts: first admission, memory, processor time
//	proxy           cmd/proxy in a pod's network namespace, its init applied
//	federation      cmd/federation in a whole lab, 100 service accounts annotated at once
//
// All are the real binaries, before a real API server.
package door2

import (
	"time"

	"github.com/lanyard-id/lanyard/internal/bench"
)

// Experiments lists them in the order in which they run.
func Experiments() []bench.Experiment {
	return []bench.Experiment{
		{
			Name: "webhook-start", What: "a webhook that starts before the API server, whose /version takes 3 s", Limit: 2 * time.Minute, Run: webhookStart,
			Rows: []bench.Row{
				{Name: "webhook-honest", What: "webhook says ready: first admission served after", V1: "v1.6: 404 while /version takes", Reach: "20 ms"},
			},
		},
		{
			Name: "webhook", What: "the webhook of Workload Identity and 50,000 service accounts", Limit: 6 * time.Minute, Run: webhook,
			Rows: []bench.Row{
				{Name: "webhook-first", What: "first admission after ready, 50,000 service accounts, median", V1: "v1.6: 1.51 s", Reach: "5 ms"},
				{Name: "webhook-first-100m", What: "the same with 100m of CPU, v1.6's own limit", V1: "v1.6: 11.4 s", Reach: "5 ms"},
				{Name: "webhook-memory", What: "the webhook's anonymous memory then", V1: "v1.6: 244-299 MB", Reach: "20 MB"},
				{Name: "admission-cpu", What: "CPU per admission, 2 containers, 8 callers", V1: "v1.6: 0.28 ms", Reach: "0.14 ms"},
				{Name: "admission-proxy-cpu", What: "the same with the proxy sidecar", V1: "-", Reach: "0.28 ms"},
			},
		},
		{
			Name: "proxy", What: "the sidecar that answers the metadata service's token endpoint in a pod", Limit: 2 * time.Minute, Run: proxy,
			Rows: []bench.Row{
				{Name: "proxy-cached", What: "cached token through the sidecar, one caller, p50", V1: "v1.6: 72-76 µs", Reach: "72 µs"},
				{Name: "proxy-throughput", What: "the same, throughput beside a bare net/http server", V1: "-", Reach: "0.7"},
				{Name: "proxy-memory", What: "the sidecar's memory after the load", V1: "v1.6: 36 MB", Reach: "20 MB"},
				{Name: "proxy-size", What: "the sidecar's binary", V1: "v1.6: 36.6 MB", Reach: "12 MB"},
			},
		},
		{
			Name: "federation", What: "a whole lab with the federation controller and the local cloud", Limit: 4 * time.Minute, Run: federation,
			Rows: []bench.Row{
				{Name: "federation", What: "100 service accounts on 5 identities annotated at once, all usable", V1: "by hand", Reach: "converges"},
				{Name: "federation-requests", What: "operations in Azure per credential", V1: "-", Reach: "counted"},
			},
		},
	}
}

// What v1.6 measured.
const (
	v16First        = 1510 * time.Millisecond
	v16FirstLimited = 11390 * time.Millisecond
	v16Memory       = 244e6
	v16CPU          = 280 * time.Microsecond
	v16Cached       = 72 * time.Microsecond
	v16ProxyMemory  = 36e6
	v16ProxySize    = 36.6e6
)

// What is to be reached.
const (
	reachHonest      = 20 * time.Millisecond
	reachFirst       = 5 * time.Millisecond
	reachMemory      = 20e6
	reachCPU         = v16CPU / 2
	reachThroughput  = 0.7
	reachProxyMemory = 20e6
	reachProxySize   = 12e6
)
