package caller

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/client-go/rest"
)

// nodeName is where the API server tells which node a token is bound to (KEP
// 4193).
const nodeName = "authentication.kubernetes.io/node-name"

// How long a review is taken to hold, and of how many tokens: drivers ask for
// each pod they mount secrets for, all with one token.
const (
	reviewHolds = 10 * time.Second
	maxReviews  = 128
)

// A Reviewer asks the API server whose token this is. It needs the verb create
// on tokenreviews. API and Audience must be set.
type Reviewer struct {
	API      rest.Interface // of authentication.k8s.io/v1
	Audience string
	Failed   func()           // told of each failed request; may be nil
	Now      func() time.Time // nil means time.Now

	mu    sync.Mutex
	known map[[sha256.Size]byte]review
}

type review struct {
	user, node string
	until      time.Time
}

// Review returns the user of a token and the node that it is bound to.
func (r *Reviewer) Review(ctx context.Context, bearer string) (user, node string, err error) {
	now := time.Now()
	if r.Now != nil {
		now = r.Now()
	}
	key := sha256.Sum256([]byte(bearer))
	r.mu.Lock()
	known, ok := r.known[key]
	r.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.user, known.node, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var answer authenticationv1.TokenReview
	err = r.API.Post().Resource("tokenreviews").Body(&authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: bearer, Audiences: []string{r.Audience}},
	}).Do(ctx).Into(&answer)
	if err != nil {
		if r.Failed != nil {
			r.Failed()
		}
		return "", "", fmt.Errorf("it could not be checked (the agent needs the verb create on tokenreviews.authentication.k8s.io): %w", err)
	}
	s := answer.Status
	if !s.Authenticated || len(s.Audiences) == 0 {
		return "", "", errors.New("it is not valid for the audience " + r.Audience)
	}
	known = review{user: s.User.Username, until: now.Add(reviewHolds)}
	if extra := s.User.Extra[nodeName]; len(extra) > 0 {
		known.node = extra[0]
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil || len(r.known) >= maxReviews {
		r.known = map[[sha256.Size]byte]review{}
	}
	r.known[key] = known
	return known.user, known.node, nil
}
