package azure

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxResourceID is far above what Azure allows (260 characters for a name, 64 for a type) and keeps hostile input cheap.
const maxResourceID = 4096

// ErrInvalidResourceID is wrapped by every error of ParseResourceID.
var ErrInvalidResourceID = errors.New("invalid Azure resource id")

// A ResourceID is a parsed Azure Resource Manager id. The zero value is the root scope "/".
//
//	/subscriptions/S                                          a subscription
//	/subscriptions/S/resourceGroups/G                         a resource group
//	/subscriptions/S/resourceGroups/G/providers/P/T/N[/T/N]   a resource: Types and Names run in parallel
//	{any of the above}/providers/P/T/N                        an extension of another resource: Extends is that one
//
// Names keep the case they were written in; Equal and Key ignore the case of ASCII letters, as Azure does.
type ResourceID struct {
	SubscriptionID string
	ResourceGroup  string
	Provider       string // namespace, for example Microsoft.KeyVault
	Types          []string
	Names          []string
	Extends        *ResourceID // only when the extended id has a provider itself
}

// ParseResourceID parses an id. It refuses what could mean two things to two readers: empty, "." and ".." segments,
// percent escapes, backslashes, control characters and query parts. All errors wrap ErrInvalidResourceID and say what
// is wrong.
func ParseResourceID(s string) (ResourceID, error) {
	id, err := parse(s)
	if err != nil {
		return ResourceID{}, fmt.Errorf("%w %.300q: %w", ErrInvalidResourceID, s, err)
	}
	return id, nil
}

func parse(s string) (ResourceID, error) {
	switch {
	case len(s) > maxResourceID:
		return ResourceID{}, fmt.Errorf("longer than %d bytes", maxResourceID)
	case !strings.HasPrefix(s, "/"):
		return ResourceID{}, errors.New("it must start with /subscriptions/ or /providers/")
	case s == "/":
		return ResourceID{}, nil
	}
	segments := strings.Split(s[1:], "/")
	for _, segment := range segments {
		if err := checkSegment(segment); err != nil {
			return ResourceID{}, err
		}
	}
	var id ResourceID
	if strings.EqualFold(segments[0], "subscriptions") {
		if len(segments) < 2 {
			return ResourceID{}, errors.New("the subscription id is missing")
		}
		id.SubscriptionID, segments = segments[1], segments[2:]
		if len(segments) > 0 && strings.EqualFold(segments[0], "resourceGroups") {
			if len(segments) < 2 {
				return ResourceID{}, errors.New("the resource group's name is missing")
			}
			id.ResourceGroup, segments = segments[1], segments[2:]
		}
	}
	for len(segments) > 0 {
		if !strings.EqualFold(segments[0], "providers") {
			return ResourceID{}, fmt.Errorf("expected providers, found %q", segments[0])
		}
		if len(segments) < 4 {
			return ResourceID{}, errors.New("providers must be followed by namespace, type and name")
		}
		if id.Provider != "" {
			extended := id
			id = ResourceID{SubscriptionID: extended.SubscriptionID, ResourceGroup: extended.ResourceGroup, Extends: &extended}
		}
		id.Provider, segments = segments[1], segments[2:]
		for len(segments) > 0 && !strings.EqualFold(segments[0], "providers") {
			if len(segments) < 2 {
				return ResourceID{}, fmt.Errorf("type %q has no name", segments[0])
			}
			id.Types = append(id.Types, segments[0])
			id.Names = append(id.Names, segments[1])
			segments = segments[2:]
		}
		if len(id.Types) == 0 {
			return ResourceID{}, fmt.Errorf("namespace %q has no type", id.Provider)
		}
	}
	return id, nil
}

func checkSegment(s string) error {
	switch {
	case s == "":
		return errors.New("it has an empty segment (two slashes, or a slash at the end)")
	case s == "." || s == "..":
		return fmt.Errorf("segment %q is not a name", s)
	case !utf8.ValidString(s):
		return errors.New("it is not UTF-8")
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f || strings.ContainsRune(`%\?#<>&"*`, r) {
			return fmt.Errorf("character %q is not allowed", r)
		}
	}
	return nil
}

// String returns the id with the keywords in Azure's usual case; names keep theirs.
func (id ResourceID) String() string {
	if id.IsRoot() {
		return "/"
	}
	var b strings.Builder
	if id.Extends != nil {
		b.WriteString(id.Extends.String())
	} else {
		if id.SubscriptionID != "" {
			b.WriteString("/subscriptions/" + id.SubscriptionID)
		}
		if id.ResourceGroup != "" {
			b.WriteString("/resourceGroups/" + id.ResourceGroup)
		}
	}
	if id.Provider != "" {
		b.WriteString("/providers/" + id.Provider)
	}
	for i, t := range id.Types {
		b.WriteString("/" + t + "/" + id.Names[i])
	}
	return b.String()
}

// IdentityString returns the id as Microsoft.ManagedIdentity and the claim xms_mirid write it: with a lower-case
// "resourcegroups".
func (id ResourceID) IdentityString() string {
	return strings.Replace(id.String(), "/resourceGroups/", "/resourcegroups/", 1)
}

// Key returns the id in lower case: two ids name the same resource if and only if their keys are equal.
func (id ResourceID) Key() string { return Fold(id.String()) }

// Equal reports whether both ids name the same resource.
func (id ResourceID) Equal(other ResourceID) bool { return id.Key() == other.Key() }

// IsRoot reports whether id is the scope above all subscriptions.
func (id ResourceID) IsRoot() bool {
	return id.SubscriptionID == "" && id.Provider == "" && id.Extends == nil
}

// Name returns the last name: the resource's, else the resource group's, else the subscription's id.
func (id ResourceID) Name() string {
	switch {
	case len(id.Names) > 0:
		return id.Names[len(id.Names)-1]
	case id.ResourceGroup != "":
		return id.ResourceGroup
	}
	return id.SubscriptionID
}

// Type returns the full type, for example "Microsoft.ManagedIdentity/userAssignedIdentities", in the case it was
// written in; compare it with strings.EqualFold. The root has type "".
func (id ResourceID) Type() string {
	switch {
	case id.Provider != "":
		return id.Provider + "/" + strings.Join(id.Types, "/")
	case id.ResourceGroup != "":
		return TypeResourceGroup
	case id.SubscriptionID != "":
		return TypeSubscription
	}
	return ""
}

// Is reports whether id has the given full type, ignoring case.
func (id ResourceID) Is(fullType string) bool { return strings.EqualFold(id.Type(), fullType) }

// Parent returns the next scope up: of a nested resource the outer one, of an extension the extended one, of a
// resource its group, of a group its subscription, and of everything else the root.
func (id ResourceID) Parent() ResourceID {
	switch {
	case len(id.Types) > 1:
		id.Types = slices.Clone(id.Types[:len(id.Types)-1])
		id.Names = slices.Clone(id.Names[:len(id.Names)-1])
		return id
	case id.Extends != nil:
		return *id.Extends
	case id.Provider != "":
		return ResourceID{SubscriptionID: id.SubscriptionID, ResourceGroup: id.ResourceGroup}
	case id.ResourceGroup != "":
		return ResourceID{SubscriptionID: id.SubscriptionID}
	}
	return ResourceID{}
}

// Child returns the id of a resource of type typ nested in id.
func (id ResourceID) Child(typ, name string) ResourceID {
	id.Types = append(slices.Clone(id.Types), typ)
	id.Names = append(slices.Clone(id.Names), name)
	return id
}

// Subscription returns the id of a subscription.
func Subscription(id string) ResourceID { return ResourceID{SubscriptionID: id} }

// Group returns the id of a resource group.
func Group(subscription, group string) ResourceID {
	return ResourceID{SubscriptionID: subscription, ResourceGroup: group}
}

// Resource returns the id of a top-level resource of the given full type ("Microsoft.KeyVault/vaults") in a group.
func (id ResourceID) Resource(fullType, name string) ResourceID {
	provider, typ, _ := strings.Cut(fullType, "/")
	out := ResourceID{SubscriptionID: id.SubscriptionID, ResourceGroup: id.ResourceGroup, Provider: provider, Types: []string{typ}, Names: []string{name}}
	if id.Provider != "" {
		out.Extends = &id
	}
	return out
}

// Fold lowers ASCII letters only. Azure ids are compared without regard to case; folding other letters would make
// distinct names equal (U+212A KELVIN SIGN and "k").
func Fold(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for j := i; j < len(b); j++ {
				if 'A' <= b[j] && b[j] <= 'Z' {
					b[j] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}
