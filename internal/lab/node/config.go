package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"golang.org/x/sys/unix"
)

// PauseImage is what containerd starts for every pod before its containers.
const PauseImage = "docker.io/lanyard/pause:dev"

// socket is where containerd listens, in the node's own /run.
const socket = "/run/containerd/containerd.sock"

// A Config describes a node. All fields must be set but Labels and Keep.
type Config struct {
	Name       string            // "aks-nodepool1-0"
	Address    netip.Addr        // the node's InternalIP, an address of the network namespace
	ProviderID string            // "azure:///subscriptions/..."
	Labels     map[string]string // of the Node object
	Pods       netip.Prefix      // addresses of the pods
	DNS        netip.Addr        // the cluster's DNS service

	Dir    string   // private files of the node, absolute; Stop removes it
	Cgroup string   // name of the node's cgroup, no slash: "lanyard-0123abcd"
	Keep   []string // paths that the node sees as the host does, for writing too; Dir is below one of them
	Kube   string   // the program with the verbs kubelet, kube-proxy and coredns
}

// A Join names the files with which a node joins a cluster.
type Join struct {
	KubeletKubeconfig string // client certificate system:node:NAME
	ProxyKubeconfig   string
	ClientCA          string // who may talk to the kubelet
	ServingCert       string // the kubelet's
	ServingKey        string
	Corefile          string // cluster DNS on this node; empty means none
}

func (c Config) validate() error {
	for field, missing := range map[string]bool{
		"Name": c.Name == "", "Address": !c.Address.IsValid(), "ProviderID": c.ProviderID == "", "Pods": !c.Pods.IsValid(),
		"DNS": !c.DNS.IsValid(), "Dir": !filepath.IsAbs(c.Dir), "Kube": c.Kube == "", "Cgroup": c.Cgroup == "",
	} {
		if missing {
			return fmt.Errorf("node config: %s is not set", field)
		}
	}
	if strings.ContainsAny(c.Cgroup, "/.") {
		return fmt.Errorf("node config: the cgroup's name %q has a slash or a dot", c.Cgroup)
	}
	return nil
}

func (c Config) file(name string) string { return filepath.Join(c.Dir, name) }

// containerdConfig is for containerd 1.6 and 2 alike. The settings about the
// OOM score let it run where CAP_SYS_RESOURCE is missing.
var containerdConfig = template.Must(template.New("containerd").Parse(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = {{printf "%q" .Socket}}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {{printf "%q" .Pause}}
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {{printf "%q" .Plugins}}
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = {{printf "%q" .Snapshotter}}
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`))

func (c Config) writeContainerd() error {
	plugins, err := Plugins()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	err = containerdConfig.Execute(&out, map[string]string{
		"Socket": socket, "Pause": PauseImage, "Plugins": plugins, "Snapshotter": snapshotter("/var/lib/containerd"),
	})
	if err != nil {
		return err
	}
	return os.WriteFile(c.file("containerd.toml"), out.Bytes(), 0o600)
}

// Plugins returns the folder with the CNI plugins that a node needs.
func Plugins() (string, error) {
	folders := []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}
	for _, dir := range folders {
		if !slices.ContainsFunc([]string{"bridge", "host-local", "loopback", "portmap"}, func(p string) bool {
			_, err := os.Stat(filepath.Join(dir, p))
			return err != nil
		}) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no CNI plugins in %s", strings.Join(folders, ", "))
}

// snapshotter is overlayfs but where that cannot be stacked once more.
func snapshotter(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err == nil && fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "native"
	}
	return "overlayfs"
}

// writeNetwork writes the pods' network. There is no masquerading: nothing is
// reachable beyond this machine, and who asks must be recognised by address.
func (c Config) writeNetwork() error {
	if err := os.MkdirAll("/etc/cni/net.d", 0o755); err != nil {
		return err
	}
	type object = map[string]any
	return writeJSON("/etc/cni/net.d/10-lab.conflist", object{
		"cniVersion": "0.4.0",
		"name":       "lab",
		"plugins": []object{
			{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
				"ipam": object{
					"type": "host-local", "dataDir": "/run/cni/networks",
					"ranges": [][]object{{{"subnet": c.Pods.String()}}},
					"routes": []object{{"dst": "0.0.0.0/0"}},
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	})
}

func (c Config) writeKubelet(j Join) error {
	type object = map[string]any
	return writeJSON(c.file("kubelet.json"), object{
		"apiVersion":   "kubelet.config.k8s.io/v1beta1",
		"kind":         "KubeletConfiguration",
		"providerID":   c.ProviderID,
		"failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": "/" + c.Cgroup, "enforceNodeAllocatable": []string{"pods"},
		"failSwapOn": false, "oomScoreAdj": 0,
		"containerRuntimeEndpoint":    "unix://" + socket,
		"imageGCHighThresholdPercent": 100, "imagePullCredentialsVerificationPolicy": "NeverVerify",
		"clusterDomain": "cluster.local", "clusterDNS": []string{c.DNS.String()}, "resolvConf": "/dev/null",
		"address": c.Address.String(), "healthzBindAddress": "127.0.0.1",
		"authentication":    object{"anonymous": object{"enabled": false}, "webhook": object{"enabled": true}, "x509": object{"clientCAFile": j.ClientCA}},
		"authorization":     object{"mode": "Webhook"},
		"tlsCertFile":       j.ServingCert,
		"tlsPrivateKeyFile": j.ServingKey,
		"evictionHard":      object{"memory.available": "100Mi", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%"},
		"volumePluginDir":   "/var/lib/kubelet/volumeplugins",
		// A lab is watched by people and tests: what changes shows at once.
		"nodeStatusUpdateFrequency": "5s", "syncFrequency": "10s", "configMapAndSecretChangeDetectionStrategy": "Watch",
	})
}

func (c Config) kubeletArgs(j Join) []string {
	args := []string{
		"kubelet", "--config=" + c.file("kubelet.json"), "--kubeconfig=" + j.KubeletKubeconfig, "--root-dir=/var/lib/kubelet",
		"--hostname-override=" + c.Name, "--node-ip=" + c.Address.String(),
	}
	var labels []string
	for k, v := range c.Labels {
		labels = append(labels, k+"="+v)
	}
	slices.Sort(labels)
	if len(labels) > 0 {
		args = append(args, "--node-labels="+strings.Join(labels, ","))
	}
	return args
}

func (c Config) proxyArgs(j Join) []string {
	return []string{
		"kube-proxy", "--kubeconfig=" + j.ProxyKubeconfig, "--hostname-override=" + c.Name,
		"--proxy-mode=nftables", "--cluster-cidr=" + c.Pods.String(),
		"--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249",
		// The table of connections is sized for the whole machine, which is not ours.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
	}
}

func writeJSON(file string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o600)
}
