package pki

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// User names of the components that are known by a client certificate and that
// Kubernetes does not name itself.
const (
	UserKubeletClient = "lanyard:kube-apiserver-kubelet-client"
	UserCoreDNS       = "lanyard:coredns"
)

// A Node is a kubelet's name and address.
type Node struct {
	Name string
	IP   net.IP
}

// A Cluster says which files Write makes.
type Cluster struct {
	Dir        string   // everything is written below it
	Server     string   // URL of the API server for people and for the control plane
	NodeServer string   // URL of the API server for nodes and their components
	Names      []string // extra DNS names of the API server
	IPs        []net.IP // addresses of the API server, ClusterIP included
	Nodes      []Node
}

// Kubeconfig returns the path of a kubeconfig file that Write makes: "admin",
// "kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns" or
// "kubelet-NODE".
func (c Cluster) Kubeconfig(name string) string {
	return filepath.Join(c.Dir, name+".kubeconfig")
}

// File returns the path of a file in the pki directory.
func (c Cluster) File(name string) string { return filepath.Join(c.Dir, "pki", name) }

// Write makes the authorities and keys that do not exist yet, and every leaf
// certificate and kubeconfig file.
func (c Cluster) Write(now time.Time) error {
	dir := filepath.Join(c.Dir, "pki")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the pki directory: %w", err)
	}
	ca, err := OpenAuthority(dir, "ca", now)
	if err != nil {
		return err
	}
	local, err := OpenAuthority(dir, "local-accounts-ca", now)
	if err != nil {
		return err
	}
	frontProxy, err := OpenAuthority(dir, "front-proxy-ca", now)
	if err != nil {
		return err
	}
	if err := EnsureSigningKey(dir); err != nil {
		return err
	}
	bundle := slices.Concat(ca.CertPEM(), local.CertPEM())
	if err := WriteFile(c.File("client-ca.crt"), bundle); err != nil {
		return err
	}

	names := append([]string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}, c.Names...)
	serving := []Leaf{{Name: "kube-apiserver", CommonName: "kube-apiserver", DNSNames: names, IPs: c.IPs}}
	for _, n := range c.Nodes {
		serving = append(serving, Leaf{
			Name: "kubelet-serving-" + n.Name, CommonName: "system:node:" + n.Name, Organizations: []string{"system:nodes"},
			DNSNames: []string{n.Name}, IPs: []net.IP{n.IP},
		})
	}
	for _, leaf := range serving {
		if _, err := ca.Issue(dir, leaf, now); err != nil {
			return err
		}
	}
	if _, err := ca.Issue(dir, Leaf{Name: "kube-apiserver-kubelet-client", CommonName: UserKubeletClient}, now); err != nil {
		return err
	}
	if _, err := frontProxy.Issue(dir, Leaf{Name: "front-proxy-client", CommonName: "front-proxy-client"}, now); err != nil {
		return err
	}
	return c.writeUsers(ca, local, now)
}

// writeUsers issues the certificates that come with a kubeconfig file.
func (c Cluster) writeUsers(ca, local *Authority, now time.Time) error {
	type user struct {
		issuer *Authority
		server string
		leaf   Leaf
	}
	users := []user{
		{local, c.Server, Leaf{Name: "admin", CommonName: "lanyard:admin", Organizations: []string{"system:masters"}}},
		{ca, c.Server, Leaf{Name: "kube-controller-manager", CommonName: "system:kube-controller-manager"}},
		{ca, c.Server, Leaf{Name: "kube-scheduler", CommonName: "system:kube-scheduler"}},
		{ca, c.NodeServer, Leaf{Name: "kube-proxy", CommonName: "system:kube-proxy"}},
		{ca, c.NodeServer, Leaf{Name: "coredns", CommonName: UserCoreDNS}},
	}
	for _, n := range c.Nodes {
		users = append(users, user{ca, c.NodeServer, Leaf{Name: "kubelet-" + n.Name, CommonName: "system:node:" + n.Name, Organizations: []string{"system:nodes"}}})
	}
	for _, u := range users {
		pair, err := u.issuer.Issue(filepath.Join(c.Dir, "pki"), u.leaf, now)
		if err != nil {
			return err
		}
		content, err := kubeconfig(u.server, u.leaf.Name, ca.CertPEM(), pair)
		if err != nil {
			return err
		}
		if err := WriteFile(c.Kubeconfig(u.leaf.Name), content); err != nil {
			return err
		}
	}
	return nil
}

// kubeconfig returns a self-contained kubeconfig file: it may be copied to
// another machine or mounted into a pod by itself. JSON is YAML.
func kubeconfig(server, user string, ca []byte, pair Pair) ([]byte, error) {
	encode := base64.StdEncoding.EncodeToString
	type named map[string]any
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetIndent("", "  ")
	err := e.Encode(named{
		"apiVersion":      "v1",
		"kind":            "Config",
		"clusters":        []named{{"name": "lanyard-lab", "cluster": named{"server": server, "certificate-authority-data": encode(ca)}}},
		"users":           []named{{"name": user, "user": named{"client-certificate-data": encode(pair.CertPEM), "client-key-data": encode(pair.KeyPEM)}}},
		"contexts":        []named{{"name": "lanyard-lab", "context": named{"cluster": "lanyard-lab", "user": user}}},
		"current-context": "lanyard-lab",
	})
	if err != nil {
		return nil, fmt.Errorf("encoding the kubeconfig of %s: %w", user, err)
	}
	return out.Bytes(), nil
}
