//go:build tools

package main

// The staging repositories below are required by k8s.io/kubernetes at v0.0.0,
// which does not exist. Nothing here compiles them; importing them keeps their
// real versions in go.mod, so that "go list -m all" works without a replace
// directive.
import (
	_ "k8s.io/code-generator"
	_ "k8s.io/sample-apiserver/pkg/apis/wardle"
)
