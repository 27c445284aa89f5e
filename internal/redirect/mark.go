package redirect

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mark is what sockets carry that BlockHost spares (SO_MARK). A process needs
// CAP_NET_ADMIN to set it, or CAP_NET_RAW since Linux 5.17; with NET_RAW it
// could send past netfilter anyway. The value keeps clear of the bits of
// kube-proxy (0xc000), Calico (0xffff0000), Cilium (0x0f00) and the AWS plugin
// (0x80), which choose routes and translations by theirs.
const Mark = 0x2029

// Control marks a socket: the Control of the net.Dialer for the agent's own
// way to the metadata service.
func Control(_, _ string, c syscall.RawConn) error {
	var inner error
	err := c.Control(func(fd uintptr) { inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, Mark) })
	if err == nil {
		err = inner
	}
	if err != nil {
		return fmt.Errorf("marking a socket (CAP_NET_ADMIN is needed): %w", err)
	}
	return nil
}
