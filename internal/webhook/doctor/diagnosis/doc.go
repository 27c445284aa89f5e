// Package diagnosis says what a pod lacks of the workload identity that it asks
// for, and whether a new pod in its place would have it. It is a function of
// values:
//
//	pod, as the API server encodes it ──> ParseSubject ─┐
//	webhook configuration ──────────────> ParseHook ────┼──> Judge ──> Verdict
//	labels of its namespace, its account, the settings ─┘
//
// The judgement is the mutation itself: a pod to which mutation.Mutate would
// still add the token has none. The layout, and what flags and annotations say
// today, do not matter: a pod of v1.6, of AKS or of an older setting is healthy.
package diagnosis
