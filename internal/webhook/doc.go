// Package webhook gives pods their workload identity: a mutating admission
// webhook that keeps the contract of azure-workload-identity v1.6.
//
//	API server ── AdmissionReview ──> Handler
//	   1 ParsePod                     read what matters, on the raw JSON
//	   2 Pod.Labelled                 a pod that does not ask is left alone
//	   3 ServiceAccounts.Annotations  who it is: filtered cache, then live
//	   4 Mutate                       what the pod becomes (pure)
//	   5 AdmissionReview              patch and warnings, or a denial
//
// The patch consists of additions addressed by position in the pod as the API
// server sent it. Nothing is decoded into a typed Pod and encoded again, so a
// field that this program has never heard of survives.
//
// Server holds the listeners and says when all of this is ready; the serving
// certificate and the API server's trust in it are the business of servingcert.
package webhook
