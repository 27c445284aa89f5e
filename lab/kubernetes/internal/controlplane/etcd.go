package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
)

// startEtcd starts etcd with its data in dir/etcd and returns the endpoint for
// clients of this process, and a function that stops it.
func startEtcd(ctx context.Context, dir string) (endpoint string, stop func(), err error) {
	sockets, err := socketDir(dir)
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			sockets.Close()
		}
	}()
	client, err := socket(sockets, "etcd.sock")
	if err != nil {
		return "", nil, err
	}

	// etcd allocates a whole segment of its log when it starts. The default of
	// 64 MB would be most of what a test writes.
	wal.SegmentSizeBytes = 8 << 20

	c := embed.NewConfig()
	c.Dir = filepath.Join(dir, "etcd")
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	// A single member listens for no peers. (etcd would bind a peer's unix URL
	// to an abstract socket, which any user of the machine may connect to.)
	c.ListenPeerUrls, c.AdvertisePeerUrls = nil, []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.UnsafeNoFsync = true // a lab may lose what the machine's own crash loses
	c.LogLevel = "error"
	e, err := embed.StartEtcd(c)
	if err != nil {
		return "", nil, fmt.Errorf("starting etcd in %s: %w", c.Dir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		e.Close()
		return "", nil, fmt.Errorf("starting etcd in %s: %w", c.Dir, err)
	case <-ctx.Done():
		e.Close()
		return "", nil, ctx.Err()
	}
	return "unix://" + client.Path, func() { e.Close(); sockets.Close() }, nil
}

// socketDir opens dir. Sockets are named through the open directory, because
// the path of a unix socket may have 107 bytes only and dir is the user's.
func socketDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the directory for sockets: %w", err)
	}
	return f, nil
}

func socket(dir *os.File, name string) (url.URL, error) {
	path := filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), name)
	// A server that was killed leaves its socket behind. DIR is locked, so
	// nobody listens on it.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return url.URL{}, fmt.Errorf("removing a stale socket: %w", err)
	}
	return url.URL{Scheme: "unix", Path: path}, nil
}
