package directory

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

func TestFederatedCredentialRules(t *testing.T) {
	f := newFixture(t)
	app, appSP := f.application("app")
	id := f.identity("billing")
	var vm ServicePrincipal
	f.ok(func(tx *state.Tx) (err error) {
		vm, err = CreateManagedIdentity(tx, "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/vm")
		return err
	})
	change := func(fn func(*FederatedCredential)) FederatedCredential {
		fc := credential("cred")
		fn(&fc)
		return fc
	}
	long := strings.Repeat("é", 601)
	for name, tt := range map[string]struct {
		parent string
		fc     FederatedCredential
		want   error
	}{
		"an application can have one":               {app.ObjectID, credential("cred"), nil},
		"a user-assigned identity can have one":     {id.ID, credential("cred"), nil},
		"the parent's id is found in any case":      {strings.ToUpper(id.ID), credential("cred"), nil},
		"a system-assigned identity cannot":         {vm.ID, credential("cred"), ErrFederatedUnsupported},
		"an application's principal is no parent":   {appSP.ID, credential("cred"), ErrNotFound},
		"a parent must exist":                       {"nobody", credential("cred"), ErrNotFound},
		"a name of two characters is too short":     {app.ObjectID, change(func(f *FederatedCredential) { f.Name = "ab" }), ErrFederatedName},
		"a name of 121 characters is too long":      {app.ObjectID, change(func(f *FederatedCredential) { f.Name = strings.Repeat("a", 121) }), ErrFederatedName},
		"a name cannot start with a dash":           {app.ObjectID, change(func(f *FederatedCredential) { f.Name = "-abc" }), ErrFederatedName},
		"a name cannot hold a slash":                {app.ObjectID, change(func(f *FederatedCredential) { f.Name = "a/bc" }), ErrFederatedName},
		"a name cannot end in a line feed":          {app.ObjectID, change(func(f *FederatedCredential) { f.Name = "abc\n" }), ErrFederatedName},
		"an issuer is https":                        {app.ObjectID, change(func(f *FederatedCredential) { f.Issuer = "http://oidc.example/" }), ErrFederatedIssuer},
		"an issuer has no query":                    {app.ObjectID, change(func(f *FederatedCredential) { f.Issuer = "https://oidc.example/?a" }), ErrFederatedIssuer},
		"an issuer has no white space around it":    {app.ObjectID, change(func(f *FederatedCredential) { f.Issuer += " " }), ErrFederatedIssuer},
		"an issuer has at most 600 characters":      {app.ObjectID, change(func(f *FederatedCredential) { f.Issuer += long }), ErrFederatedIssuer},
		"a subject is required":                     {app.ObjectID, change(func(f *FederatedCredential) { f.Subject = "" }), ErrFederatedSubject},
		"a subject has at most 600 characters":      {app.ObjectID, change(func(f *FederatedCredential) { f.Subject = long }), ErrFederatedSubject},
		"a subject of 600 characters is fine":       {app.ObjectID, change(func(f *FederatedCredential) { f.Subject = long[:1200] }), nil},
		"a description has at most 600 characters":  {app.ObjectID, change(func(f *FederatedCredential) { f.Description = long }), ErrFederatedDescription},
		"no audience is refused":                    {app.ObjectID, change(func(f *FederatedCredential) { f.Audiences = nil }), ErrFederatedAudience},
		"two audiences are refused":                 {app.ObjectID, change(func(f *FederatedCredential) { f.Audiences = []string{"a", "b"} }), ErrFederatedAudience},
		"an empty audience is refused":              {app.ObjectID, change(func(f *FederatedCredential) { f.Audiences = []string{""} }), ErrFederatedAudience},
		"an audience that is not UTF-8 is refused":  {app.ObjectID, change(func(f *FederatedCredential) { f.Audiences = []string{"\xff"} }), ErrFederatedAudience},
		"a subject with control bytes is refused":   {app.ObjectID, change(func(f *FederatedCredential) { f.Subject = "a\x00b" }), ErrFederatedSubject},
		"an issuer without a host is refused":       {app.ObjectID, change(func(f *FederatedCredential) { f.Issuer = "https:///x" }), ErrFederatedIssuer},
		"an issuer with a user part is refused":     {app.ObjectID, change(func(f *FederatedCredential) { f.Issuer = "https://u@oidc.example" }), ErrFederatedIssuer},
		"a description of several lines is allowed": {app.ObjectID, change(func(f *FederatedCredential) { f.Description = "a\nb" }), nil},
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			err := f.do(func(tx *state.Tx) error {
				_, err := PutFederatedCredential(tx, tt.parent, tt.fc)
				return err
			})
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestFederatedCredentialsAreReplacedByNameAndUniqueByIssuerAndSubject(t *testing.T) {
	f := newFixture(t)
	id := f.identity("billing")
	other := f.identity("other")
	put := func(parent string, fc FederatedCredential) (created bool, err error) {
		err = f.do(func(tx *state.Tx) error {
			created, err = PutFederatedCredential(tx, parent, fc)
			return err
		})
		return created, err
	}
	first := credential("One")
	if created, err := put(id.ID, first); err != nil || !created {
		t.Fatalf("first put: %v, %v", created, err)
	}
	moved := first
	moved.Name, moved.Subject = "ONE", "system:serviceaccount:ns:moved"
	if created, err := put(id.ID, moved); err != nil || created {
		t.Fatalf("put by another case of the name: %v, %v; want a replacement", created, err)
	}
	clash := moved
	clash.Name = "two"
	if _, err := put(id.ID, clash); !errors.Is(err, ErrFederatedDuplicate) || !errors.Is(err, ErrExists) {
		t.Fatalf("same issuer and subject: %v, want ErrFederatedDuplicate", err)
	}
	if _, err := put(other.ID, clash); err != nil {
		t.Fatalf("same issuer and subject under another identity: %v", err)
	}
	clash.Subject = strings.ToUpper(clash.Subject)
	if _, err := put(id.ID, clash); err != nil {
		t.Fatalf("subject in another case is another subject: %v", err)
	}
	for i := range MaxFederatedCredentials - 2 {
		if _, err := put(id.ID, credential(fmt.Sprintf("cred-%02d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := put(id.ID, credential("one-too-many")); !errors.Is(err, ErrFederatedLimit) {
		t.Fatalf("21st: %v, want ErrFederatedLimit", err)
	}
	if created, err := put(id.ID, credential("cred-00")); err != nil || created {
		t.Fatalf("replacing one of 20: %v, %v", created, err)
	}
	f.ok(func(tx *state.Tx) error {
		got, ok, err := GetFederatedCredential(tx, id.ID, "oNe")
		want := moved
		want.Name, want.ID = "One", got.ID
		if uuid.Validate(got.ID) != nil {
			t.Errorf("its id is %q", got.ID)
		}
		if diff := cmp.Diff(want, got); diff != "" || !ok {
			t.Errorf("credential (-want +got), found %v:\n%s", ok, diff)
		}
		return err
	})
	f.ok(func(tx *state.Tx) error {
		existed, err := DeleteFederatedCredential(tx, id.ID, "ONE")
		if !existed {
			t.Error("it did not exist")
		}
		return err
	})
	f.ok(func(tx *state.Tx) error {
		existed, err := DeleteFederatedCredential(tx, id.ID, "ONE")
		if existed {
			t.Error("it existed twice")
		}
		return err
	})
}
