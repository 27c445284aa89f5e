package webhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

// An AccountCache knows the service accounts of the cluster that carry
// labels or annotations of azure.workload.identity/, and of those nothing else.
// One that it does not know is read from the API server, so that an account
// created in the same breath as its pod is found.
//
// It lists page by page and keeps of each page what it needs. client-go's
// reflector holds every object until the list is complete, which at 50,000
// accounts is more than everything else in the process.
type AccountCache struct {
	Client metadata.Interface // must be set
	Listed func()             // called whenever all accounts have been read; nil means nothing
	Logger *slog.Logger       // nil means slog.Default

	mu        sync.RWMutex
	annotated map[string]packed // by namespace/name
	synced    bool
}

const (
	accountPage   = 500
	shortWatch    = time.Second // one that ends sooner is as good as refused
	firstPatience = 250 * time.Millisecond
	lastPatience  = 5 * time.Second // readiness waits for it
	readPatience  = 3 * time.Second // of one review: less than the shortest timeout that people set
)

// Run keeps the cache until the context ends. While the API server does not
// answer it tries again, at most 5 seconds apart, and what it knows stays.
func (c *AccountCache) Run(ctx context.Context) error {
	patience := firstPatience
	for {
		version, err := c.list(ctx)
		if err == nil {
			started := time.Now()
			if err = c.follow(ctx, version); time.Since(started) > lastPatience {
				patience = firstPatience
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		logger := c.Logger
		if logger == nil {
			logger = slog.Default()
		}
		logger.WarnContext(ctx, "following service accounts", "err", err, "retryIn", patience)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(patience):
		}
		patience = min(2*patience, lastPatience)
	}
}

func (c *AccountCache) accounts() metadata.Getter {
	return c.Client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"})
}

// list reads all accounts and returns the version of the list.
func (c *AccountCache) list(ctx context.Context) (string, error) {
	annotated := map[string]packed{}
	options := metav1.ListOptions{Limit: accountPage}
	for {
		page, err := c.accounts().List(ctx, options)
		if err != nil {
			return "", fmt.Errorf("listing service accounts: %w", err)
		}
		for i := range page.Items {
			if p := pack(&page.Items[i]); p != "" {
				annotated[page.Items[i].Namespace+"/"+page.Items[i].Name] = p
			}
		}
		if options.Continue = page.Continue; options.Continue == "" {
			if c.Listed != nil {
				c.Listed() // before the webhook is ready: the first review does not wait for it
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.annotated, c.synced = annotated, true
			return page.ResourceVersion, nil
		}
	}
}

// follow notes changes from a version on until the server no longer tells.
func (c *AccountCache) follow(ctx context.Context, version string) error {
	for {
		started := time.Now()
		w, err := c.accounts().Watch(ctx, metav1.ListOptions{ResourceVersion: version, AllowWatchBookmarks: true})
		if err != nil {
			return fmt.Errorf("watching service accounts: %w", err)
		}
		version, err = c.events(w, version)
		w.Stop()
		switch {
		case err != nil:
			return fmt.Errorf("watching service accounts: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Since(started) < shortWatch:
			return errors.New("watching service accounts: the server ends every watch at once")
		}
	}
}

// events notes changes until the watch ends, as the server ends every watch
// after some minutes, and returns the version that it has reached.
func (c *AccountCache) events(w watch.Interface, version string) (string, error) {
	for e := range w.ResultChan() {
		if e.Type == watch.Error {
			return version, apierrors.FromObject(e.Object)
		}
		m, ok := e.Object.(*metav1.PartialObjectMetadata)
		if !ok {
			return version, fmt.Errorf("an event is about %T", e.Object)
		}
		version = m.ResourceVersion
		switch e.Type {
		case watch.Added, watch.Modified:
			c.put(m)
		case watch.Deleted:
			c.mu.Lock()
			delete(c.annotated, m.Namespace+"/"+m.Name)
			c.mu.Unlock()
		}
	}
	return version, nil
}

func (c *AccountCache) put(m *metav1.PartialObjectMetadata) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key, p := m.Namespace+"/"+m.Name, pack(m)
	if p == "" {
		delete(c.annotated, key)
		return
	}
	c.annotated[key] = p
}

// Ready reports whether the cache has seen the cluster.
func (c *AccountCache) Ready() error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.synced {
		return errors.New("service accounts are not listed yet")
	}
	return nil
}

// Len is the number of annotated service accounts.
func (c *AccountCache) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.annotated)
}

// ServiceAccount implements ServiceAccounts.
func (c *AccountCache) ServiceAccount(ctx context.Context, namespace, name string) (mutation.ServiceAccount, error) {
	c.mu.RLock()
	known, ok := c.annotated[namespace+"/"+name]
	c.mu.RUnlock()
	if ok {
		return known.unpack(), nil
	}
	// The client joins names to a path and looks at none: with "../.." a pod
	// would choose what is read. Whoever reaches the webhook may write anything.
	if len(validation.IsDNS1123Label(namespace)) > 0 || len(validation.IsDNS1123Subdomain(name)) > 0 {
		return mutation.ServiceAccount{}, fmt.Errorf("%w: %q in %q cannot be a name", ErrNotFound, name, namespace)
	}
	account, err := c.read(ctx, namespace, name)
	if apierrors.IsNotFound(err) {
		return mutation.ServiceAccount{}, fmt.Errorf("%w: %s/%s", ErrNotFound, namespace, name)
	}
	if err != nil {
		return mutation.ServiceAccount{}, fmt.Errorf("getting service account %s/%s: %w", namespace, name, err)
	}
	return pack(account).unpack(), nil
}

// read asks again for a moment while nobody answers. An API server asks us: so
// there is one, although its Service may still, or already, lead elsewhere, as
// it does for a second after a restart.
func (c *AccountCache) read(ctx context.Context, namespace, name string) (*metav1.PartialObjectMetadata, error) {
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	for {
		account, err := c.accounts().Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
		var answer apierrors.APIStatus
		if err == nil || errors.As(err, &answer) {
			return account, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(firstPatience):
		}
	}
}

// Known returns what is in memory about an account: nothing if it has no
// annotations.
func (c *AccountCache) Known(namespace, name string) mutation.ServiceAccount {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.annotated[namespace+"/"+name].unpack()
}

// packed is the labels and annotations of the contract in one string: in maps
// they would take five times the memory. A key is without the contract's
// prefix; labels start with labelMark, which no key can.
type packed string

const (
	separator = "\x00"
	labelMark = "="
)

// pack returns what is of the contract, "" if nothing is.
func pack(m *metav1.PartialObjectMetadata) packed {
	var fields []string
	keep := func(mark string, all map[string]string) {
		for k, v := range all {
			// A NUL cannot be in an identity; what has one is left out.
			if name, ours := strings.CutPrefix(k, workloadidentity.Prefix); ours && !strings.Contains(v, separator) {
				fields = append(fields, mark+name+separator+v)
			}
		}
	}
	keep("", m.Annotations)
	keep(labelMark, m.Labels)
	slices.Sort(fields)
	return packed(strings.Join(fields, separator))
}

func (p packed) unpack() mutation.ServiceAccount {
	var sa mutation.ServiceAccount
	for rest := string(p); rest != ""; {
		var name, value string
		name, rest, _ = strings.Cut(rest, separator)
		value, rest, _ = strings.Cut(rest, separator)
		into := &sa.Annotations
		if label, ok := strings.CutPrefix(name, labelMark); ok {
			name, into = label, &sa.Labels
		}
		if *into == nil {
			*into = map[string]string{}
		}
		(*into)[workloadidentity.Prefix+name] = value
	}
	return sa
}
