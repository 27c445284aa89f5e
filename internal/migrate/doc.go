// Package migrate moves workloads from Pod Identity v1 to Workload Identity. This
// part only plans: a function of values, without a cluster and without Azure.
//
//	World ── what v1 gives each workload    binding.Of, the same rules as nmi's
//	      ── one service account for it     the workload's own, or a new one
//	      ── credentials, at most 20        for each service account at each identity
//	      ── the pod template               label, service account, proxy where it is needed
//	      ── Plan                           and what cannot be migrated, with the way out
//
// Package migrate/move reads the World and carries out the Plan: it applies,
// verifies and rolls back.
//
// Objects are edited as they came from the API server, without types, so that
// fields that no type of today knows survive.
package migrate
