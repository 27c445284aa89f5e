package main

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strconv"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/redirect/pod"
)

// The init container's environment, beside workloadidentity.EnvProxyPort.
const (
	envProxyUID     = "PROXY_UID"
	envMetadataIP   = "METADATA_IP"
	envMetadataPort = "METADATA_PORT"
	envMetadataIPv6 = "METADATA_IPV6" // not of v1.6
)

// initialize writes the rules. Any error keeps the pod from starting.
func initialize(args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "--version" {
		return writeVersion(stdout)
	}
	if len(args) > 0 {
		return fmt.Errorf("%q: init takes no arguments, only the environment (see proxy --help)", args[0])
	}
	r, err := rules(getenv)
	if err != nil {
		return err
	}
	if err := r.Install(); err != nil {
		return err
	}
	slog.New(slog.NewJSONHandler(stderr, nil)).Info("the metadata service is redirected", "metadata", fmt.Sprint(r.Metadata), "port", r.Port, "exceptUID", r.UID)
	return nil
}

func rules(getenv func(string) string) (r pod.Rules, err error) {
	m, err := metadata(getenv)
	if err != nil {
		return r, err
	}
	r.Metadata = []netip.AddrPort{m}
	if s := getenv(envMetadataIPv6); s != "" {
		six, err := netip.ParseAddr(s)
		if err != nil || !six.Is6() || six.Is4In6() {
			return r, fmt.Errorf("%s=%s is not an IPv6 address", envMetadataIPv6, s)
		}
		r.Metadata = append(r.Metadata, netip.AddrPortFrom(six, m.Port()))
	}
	port, err := portOf(getenv, workloadidentity.EnvProxyPort, workloadidentity.DefaultProxyPort)
	if err != nil {
		return r, err
	}
	uid, err := strconv.ParseUint(cmp.Or(getenv(envProxyUID), strconv.Itoa(workloadidentity.ProxyUID)), 10, 32)
	if err != nil {
		return r, fmt.Errorf("%s=%s is not the number of a user", envProxyUID, getenv(envProxyUID))
	}
	r.Port, r.UID = port, uint32(uid)
	return r, nil
}

// metadata is where the metadata service is.
func metadata(getenv func(string) string) (netip.AddrPort, error) {
	s := cmp.Or(getenv(envMetadataIP), "169.254.169.254")
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s=%s is not an address", envMetadataIP, s)
	}
	port, err := portOf(getenv, envMetadataPort, 80)
	return netip.AddrPortFrom(a, port), err
}

func portOf(getenv func(string) string, name string, otherwise int) (uint16, error) {
	s := cmp.Or(getenv(name), strconv.Itoa(otherwise))
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%s=%s: a port is 1 to 65535", name, s)
	}
	return uint16(port), nil
}
