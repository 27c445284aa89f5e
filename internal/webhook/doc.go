// Package webhook gives pods their workload identity: a mutating admission
// webhook that keeps the contract of azure-workload-identity v1.6.
//
//	API server ── AdmissionReview ──> Handler
//	   1 mutation.ParsePod               read what matters, on the raw JSON
//	   2 Pod.Labelled                    a pod that does not ask is left alone
//	   3 ServiceAccounts.ServiceAccount  who it is: filtered cache, then live
//	   4 mutation.Mutate                 what the pod becomes (pure)
//	   5 AdmissionReview                 patch and warnings, or a denial
//
// Server holds the listeners and says when all of this is ready: AccountCache
// has listed, ServerVersion has heard from the API server, and there is a
// serving certificate. That, and the API server's trust in it, are the business
// of servingcert.
package webhook
