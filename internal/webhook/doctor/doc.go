// Package doctor finds pods that ask for a workload identity and run without
// it, because the webhook was not asked when they were created: it was down and
// its failurePolicy is Ignore, its configuration was missing, or the pod is
// older than the installation.
//
//	Lease ──> one replica acts
//	pods with the label ── list, page by page, then watch ──> diagnosis.Judge ──> patients
//	   1 report   an Event on the pod, a line in the log, a metric
//	   2 evict    when asked: one pod of an owner at a time, through the
//	              Eviction API, so that PodDisruptionBudgets hold; the next when
//	              the replacement is ready and has its identity
//
// An eviction ends a pod that works in some way, so whatever is not certain to
// come back better is left alone and only reported: pods without a controller,
// pods of Jobs and of controllers that the doctor does not know, pods that the
// webhook would refuse, pods that autoscalers are told not to evict. If a
// replacement comes without identity as well, or none comes, which is how an
// API server that does not reach the webhook shows, the owner is not touched
// again; three such owners end the evictions of their namespace, ten all. The
// first eviction has to help before there are two at a time, and one without
// answer counts until a look at the pod says that it did not happen. What was
// tried is written into the Lease before each eviction: the next leader knows
// it, and a replica that has lost the Lease cannot evict. Deleting the Lease
// makes it begin anew.
//
// The doctor writes no condition into pods. Whoever may patch pods/status may
// also change the address and the readiness of every pod of the cluster, and
// RBAC cannot narrow that; an Event and a metric say the same.
//
// Only pods with a finding are remembered, a bounded number of them, so that
// neither a large cluster nor a flood of labelled pods fills the memory.
package doctor
