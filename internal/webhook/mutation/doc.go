// Package mutation says what a pod becomes that asks for a workload identity:
// the rules of azure-workload-identity v1.6 as a function of values.
//
//	ParsePod     what matters of a pod, with its positions in the raw JSON
//	Mutate       pod + service account + settings -> JSON patch and warnings
//	   proxyOf         is the token proxy asked for, and can the pod have it
//	   plan.container  variables and mount of each container
//	   project         the volume with the token
//	   plan.inject     the token proxy
//	   plan.annotate   what was taken from the service account (see record)
//
// The patch is addressed by position in the pod as the API server sent it, and
// it adds. It replaces the webhook's own volume and mount, and values that the
// webhook itself wrote in an earlier pass for another service account; nothing
// else. Nothing is decoded into a typed Pod and encoded again, so a field that
// this program has never heard of survives.
package mutation
