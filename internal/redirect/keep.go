package redirect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Keep looks at the rules at this interval, and when the kernel tells that
// something of ours was deleted, until ctx ends. It installs them again if
// somebody else has taken them away: a firewall that is loaded anew flushes all
// tables, and pods would reach the node's own metadata service from then on.
// lost is told each time. The error is that of an Install, or nil when ctx has
// ended.
func (w *Writer) Keep(ctx context.Context, interval time.Duration, lost func()) error {
	deleted, stop, err := deletions()
	if err != nil {
		return fmt.Errorf("keeping the redirection: %w", err)
	}
	defer stop()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-deleted:
		}
		if err := w.restore(lost); err != nil {
			return err
		}
	}
}

func (w *Writer) restore(lost func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ok, err := w.installed(); ok && err == nil {
		return nil
	}
	lost()
	return w.install()
}

// installed reports whether all tables are there with all of their rules and
// elements.
func (w *Writer) installed() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	for _, f := range families() {
		t, err := table(c, f)
		if err != nil {
			return false, err
		}
		chains := w.Rules.chains(f)
		if (t != nil) != (len(chains) > 0) {
			return false, nil
		}
		for _, ch := range chains {
			rules, err := c.GetRules(t, &nftables.Chain{Name: ch.name, Table: t})
			if err != nil || len(rules) != len(ch.rules) {
				return false, err
			}
		}
		if t == nil || !w.Rules.Guard {
			continue
		}
		for _, s := range setsOf(t) {
			keys, err := c.GetSetElements(s)
			if err != nil || len(keys) != len(w.contents[in{f, s.Name}]) {
				return false, err
			}
		}
	}
	return true, nil
}

// deletions tells when something of our tables was deleted, or might have
// been. A burst is told once.
func deletions() (<-chan struct{}, func(), error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, nil, fmt.Errorf("subscribing to changes of netfilter rules: %w", err)
	}
	told, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		for {
			messages, _, err := s.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return // closed; the interval remains
			}
			// ENOBUFS: the kernel had more to tell than we could take.
			if err == nil && !ours(messages) {
				continue
			}
			select {
			case told <- struct{}{}:
			default:
			}
		}
	}()
	return told, func() { s.Close(); <-done }, nil
}

func ours(messages []syscall.NetlinkMessage) bool {
	for _, m := range messages {
		if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 {
			continue
		}
		switch m.Header.Type & 0xff {
		case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM:
		default:
			continue
		}
		// After struct nfgenmsg; the table's name is attribute 1 of each.
		attrs, err := nl.ParseRouteAttr(m.Data[4:])
		if err != nil {
			return true
		}
		for _, a := range attrs {
			if a.Attr.Type == 1 && bytes.Equal(bytes.TrimRight(a.Value, "\x00"), []byte(TableName)) {
				return true
			}
		}
	}
	return false
}
