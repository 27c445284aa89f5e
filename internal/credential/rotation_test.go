package credential_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lanyard-id/lanyard/internal/credential"
)

var (
	errRefused = errors.New("invalid_client")
	errDown    = errors.New("down")
)

func isRefused(err error) bool { return errors.Is(err, errRefused) }

// A verifier accepts some passwords and records what it was shown.
type verifier struct {
	good map[string]bool
	down bool
	saw  []string
}

func (v *verifier) try(c *credential.Credential) error {
	form, err := c.Form("id", "aud", time.Now())
	if err != nil {
		return err
	}
	p := form.Get("client_secret")
	v.saw = append(v.saw, p)
	switch {
	case v.down:
		return errDown
	case !v.good[p]:
		return errRefused
	}
	return nil
}

func (v *verifier) use(t *testing.T, r *credential.Rotation, wantErr error, wantSaw ...string) credential.Outcome {
	t.Helper()
	v.saw = nil
	o, err := r.Use(v.try, isRefused)
	if !errors.Is(err, wantErr) || (err == nil) != (wantErr == nil) {
		t.Errorf("got error %v, want %v", err, wantErr)
	}
	if len(v.saw) != len(wantSaw) {
		t.Fatalf("tried %v, want %v", v.saw, wantSaw)
	}
	for i := range wantSaw {
		if v.saw[i] != wantSaw[i] {
			t.Errorf("tried %v, want %v", v.saw, wantSaw)
		}
	}
	return o
}

func password(t *testing.T, p string) *credential.Credential {
	t.Helper()
	c, err := credential.Password(secret("clientSecret", p))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &verifier{good: map[string]bool{"one": true}}
		var r credential.Rotation
		if _, err := r.Use(v.try, isRefused); err == nil {
			t.Error("an empty rotation works")
		}
		r.Offer(password(t, "one"))
		if o := v.use(t, &r, nil, "one"); o.Accepted || o.Refused != nil {
			t.Errorf("the first credential: %+v", o)
		}

		// A bad one: reported once, tried again with back-off.
		r.Offer(password(t, "two"))
		if o := v.use(t, &r, nil, "two", "one"); !errors.Is(o.Refused, errRefused) {
			t.Errorf("the refusal was not reported: %+v", o)
		}
		if o := v.use(t, &r, nil, "one"); o.Refused != nil || r.Pending() {
			t.Errorf("at once again: %+v", o)
		}
		<-time.After(5 * time.Second)
		if !r.Pending() {
			t.Error("not pending after the first back-off")
		}
		v.use(t, &r, nil, "two", "one")
		<-time.After(9 * time.Second)
		v.use(t, &r, nil, "one")
		<-time.After(time.Second)

		// Nothing is concluded from an endpoint that is down.
		v.down = true
		v.use(t, &r, errDown, "two")
		v.down = false

		// It is accepted at last, and the old one is never shown again.
		v.good["two"] = true
		if o := v.use(t, &r, nil, "two"); !o.Accepted {
			t.Errorf("accepted: %+v", o)
		}
		v.good["two"] = false
		v.use(t, &r, errRefused, "two")
	})
}

func TestTheOldCredentialIsRefusedWhileTheNewOneRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &verifier{good: map[string]bool{"one": true}}
		var r credential.Rotation
		r.Offer(password(t, "one"))
		v.use(t, &r, nil, "one")
		r.Offer(password(t, "two"))
		v.use(t, &r, nil, "two", "one")
		v.good = map[string]bool{"two": true}
		if o := v.use(t, &r, nil, "one", "two"); !o.Accepted {
			t.Errorf("got %+v", o)
		}
	})
}

func TestACredentialThatIsTakenBackIsNotTried(t *testing.T) {
	v := &verifier{good: map[string]bool{"one": true}}
	var r credential.Rotation
	r.Offer(password(t, "one"))
	v.use(t, &r, nil, "one")
	r.Offer(password(t, "two"))
	r.Offer(password(t, "one"))
	v.use(t, &r, nil, "one")
}

func TestASecretThatCannotBeReadLeavesTheOldCredential(t *testing.T) {
	v := &verifier{good: map[string]bool{"one": true}}
	var r credential.Rotation
	broken := errors.New("broken")
	if r.Break(broken) {
		t.Error("an empty rotation serves")
	}
	if _, err := r.Use(v.try, isRefused); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	r.Offer(password(t, "one"))
	v.use(t, &r, nil, "one")
	if !r.Break(broken) {
		t.Error("the old credential does not serve")
	}
	v.use(t, &r, nil, "one")
}
