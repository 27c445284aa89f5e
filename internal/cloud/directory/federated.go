package directory

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// A FederatedCredential lets the holder of a token with this issuer,
// subject and audience act as the application or managed identity that it
// belongs to.
type FederatedCredential struct {
	// ID is a GUID that Graph shows; PutFederatedCredential chooses it. One
	// that was stored before there were ids has none.
	ID          string `json:",omitempty"`
	Name        string
	Issuer      string
	Subject     string
	Description string
	Audiences   []string // exactly one
	// Expression of a flexible credential (applications only) stands in the
	// place of Subject, for example claims['sub'] matches 'repo:a/b:*'.
	Expression string `json:",omitempty"`
}

// Why a federated credential is refused, besides ErrNotFound for a missing
// parent. All but ErrFederatedDuplicate and ErrFederatedLimit also are
// ErrInvalid; ErrFederatedDuplicate also is ErrExists.
var (
	ErrFederatedName        = fmt.Errorf("federated identity credential name is invalid: %w", ErrInvalid)
	ErrFederatedIssuer      = fmt.Errorf("federated identity credential issuer is invalid: %w", ErrInvalid)
	ErrFederatedSubject     = fmt.Errorf("federated identity credential subject is invalid: %w", ErrInvalid)
	ErrFederatedDescription = fmt.Errorf("federated identity credential description is invalid: %w", ErrInvalid)
	ErrFederatedAudience    = fmt.Errorf("federated identity credentials must have exactly one audience: %w", ErrInvalid)
	ErrFederatedExpression  = fmt.Errorf("claims matching expression is invalid: %w", ErrInvalid)
	ErrFederatedUnsupported = fmt.Errorf("system-assigned managed identities cannot have federated identity credentials: %w", ErrInvalid)
	ErrFederatedDuplicate   = fmt.Errorf("issuer and subject combination: %w", ErrExists)
	ErrFederatedLimit       = fmt.Errorf("a parent can have %d federated identity credentials", MaxFederatedCredentials)
)

// MaxFederatedCredentials is how many federated credentials one application
// or user-assigned identity can have (published limit).
const MaxFederatedCredentials = 20

const maxFederatedText = 600

var federatedName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{2,119}$`)

// PutFederatedCredential creates or replaces the credential with this name
// under an application (by object id) or a user-assigned identity (by
// principal id). It reports whether it is new.
func PutFederatedCredential(tx *state.Tx, parentID string, fc FederatedCredential) (created bool, err error) {
	parentID = fold(parentID)
	if err := federatedParent(tx, parentID); err != nil {
		return false, err
	}
	if err := fc.validate(); err != nil {
		return false, err
	}
	if _, isApp, err := ApplicationByID(tx, parentID); err != nil {
		return false, err
	} else if fc.Expression != "" && !isApp {
		return false, fmt.Errorf("%w: managed identities cannot have one", ErrFederatedExpression)
	}
	all, err := ListFederatedCredentials(tx, parentID)
	if err != nil {
		return false, err
	}
	created, fc.ID = true, uuid.NewString()
	for _, o := range all {
		if fold(o.Name) == fold(fc.Name) {
			created = false
			fc.Name = o.Name // immutable, also in its case
			if o.ID != "" {
				fc.ID = o.ID
			}
		} else if o.Issuer == fc.Issuer && o.Subject == fc.Subject && o.Expression == fc.Expression {
			return false, fmt.Errorf("%w: %q has it", ErrFederatedDuplicate, o.Name)
		}
	}
	if created && len(all) >= MaxFederatedCredentials {
		return false, fmt.Errorf("%w: %s has them, delete one first", ErrFederatedLimit, parentID)
	}
	return created, state.Put(tx, bucketFederated, federatedKey(parentID, fc.Name), fc)
}

// ListFederatedCredentials lists the credentials of a parent, by name. A
// parent that does not exist has none.
func ListFederatedCredentials(tx *state.Tx, parentID string) ([]FederatedCredential, error) {
	return state.List[FederatedCredential](tx, bucketFederated, federatedKey(fold(parentID), ""))
}

// GetFederatedCredential reads one credential.
func GetFederatedCredential(tx *state.Tx, parentID, name string) (FederatedCredential, bool, error) {
	return state.Get[FederatedCredential](tx, bucketFederated, federatedKey(fold(parentID), name))
}

// DeleteFederatedCredential removes one credential and reports whether it
// existed.
func DeleteFederatedCredential(tx *state.Tx, parentID, name string) (existed bool, err error) {
	_, existed, err = GetFederatedCredential(tx, parentID, name)
	if err != nil || !existed {
		return false, err
	}
	return true, state.Delete(tx, bucketFederated, federatedKey(fold(parentID), name))
}

func deleteFederated(tx *state.Tx, parentID string) error {
	keys, err := state.Keys(tx, bucketFederated, federatedKey(parentID, ""))
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := state.Delete(tx, bucketFederated, k); err != nil {
			return err
		}
	}
	return nil
}

func federatedParent(tx *state.Tx, parentID string) error {
	_, ok, err := ApplicationByID(tx, parentID)
	if err != nil || ok {
		return err
	}
	sp, ok, err := ServicePrincipalByID(tx, parentID)
	switch {
	case err != nil:
		return err
	case !ok || sp.Type != TypeManagedIdentity:
		return fmt.Errorf("application or user-assigned identity %q: %w", parentID, ErrNotFound)
	case !sp.UserAssigned():
		return ErrFederatedUnsupported
	}
	return nil
}

func federatedKey(parentID, name string) string { return parentID + "/" + fold(name) }

func (f FederatedCredential) validate() error {
	if !federatedName.MatchString(f.Name) {
		return fmt.Errorf("%w: %q must have 3 to 120 letters, digits, dashes or underscores and start with a letter or digit", ErrFederatedName, f.Name)
	}
	if err := federatedText(ErrFederatedIssuer, f.Issuer); err != nil {
		return err
	}
	if u, err := url.Parse(f.Issuer); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%w: %q must be an https URL without query, fragment or user", ErrFederatedIssuer, f.Issuer)
	}
	if f.Expression != "" {
		if err := f.validateExpression(); err != nil {
			return err
		}
	} else if err := federatedText(ErrFederatedSubject, f.Subject); err != nil {
		return err
	}
	if utf8.RuneCountInString(f.Description) > maxFederatedText || !utf8.ValidString(f.Description) {
		return fmt.Errorf("%w: at most %d characters", ErrFederatedDescription, maxFederatedText)
	}
	if len(f.Audiences) != 1 {
		return fmt.Errorf("%w: this one has %d", ErrFederatedAudience, len(f.Audiences))
	}
	return federatedText(ErrFederatedAudience, f.Audiences[0])
}

func federatedText(kind error, s string) error {
	if s == "" || !utf8.ValidString(s) || utf8.RuneCountInString(s) > maxFederatedText {
		return fmt.Errorf("%w: 1 to %d characters", kind, maxFederatedText)
	}
	if strings.TrimSpace(s) != s || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("%w: %q has white space around it or control characters in it", kind, s)
	}
	return nil
}

func validIdentifierURI(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.IsAbs() && (u.Host != "" || u.Opaque != "") && u.RawQuery == "" && u.Fragment == "" && len(s) <= maxNameLength
}

func validDomain(s string) bool {
	if len(s) > 253 || !strings.Contains(s, ".") {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return false
		}
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}

// domainLabel makes the first label of a tenant's default domain.
func domainLabel(name string) string {
	label := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, fold(name))
	if label == "" {
		return "tenant"
	}
	return label[:min(len(label), 27)]
}
