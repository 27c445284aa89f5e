package federated

import (
	"context"
	"slices"
	"strings"
)

// PutListed is Put for a caller who has just listed the parent's credentials: it
// lists them again only where something is not as they say. Resource Manager
// allows one listing in four seconds per identity, which is little for a caller
// who writes many.
func (c *Client) PutListed(ctx context.Context, p Parent, listed []Credential, want Credential) error {
	s, err := c.store(p)
	if err != nil {
		return err
	}
	there := slices.ContainsFunc(listed, func(x Credential) bool { return strings.EqualFold(x.Name, want.Name) })
	if there && p.Kind == Application {
		return c.Put(ctx, p, want) // the directory's id of the credential is needed
	}
	want.Audience = want.audience()
	known := &listedStore{store: s, first: make([]stored, len(listed))}
	for i, x := range listed {
		known.first[i].Credential = x
	}
	return c.serially(ctx, p, func() error { return s.explain(put(ctx, known, want)) })
}

// listedStore knows the answer to the first question.
type listedStore struct {
	store
	first []stored
	asked bool
}

func (l *listedStore) list(ctx context.Context) ([]stored, error) {
	if l.asked {
		return l.store.list(ctx)
	}
	l.asked = true
	return l.first, nil
}
