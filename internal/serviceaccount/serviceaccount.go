// Package serviceaccount connects a Kubernetes service account with an identity
// in Azure, and takes the connection apart again: the commands "lanyard
// serviceaccount create" and "delete". They are azwi's, phase by phase, and take
// managed identities too.
//
//	create                              delete
//	1 aad-application | managed-identity    4 (only what create made)
//	2 service-account                       3
//	3 federated-identity                    2
//	4 role-assignment                       1
//
// Every phase can run alone and again: what is so already is left alone. A
// phase that fails ends the run with what to do about it.
package serviceaccount

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/graph"
)

// Names of phases.
const (
	PhaseApplication    = "aad-application"
	PhaseIdentity       = "managed-identity"
	PhaseAccount        = "service-account"
	PhaseFederated      = "federated-identity"
	PhaseRoleAssignment = "role-assignment"
)

// A Verb is what is done.
type Verb string

// The verbs.
const (
	Create Verb = "create"
	Delete Verb = "delete"
)

// Bounds of the lifetime of a service account's token.
const (
	MinExpiration = time.Hour
	MaxExpiration = 24 * time.Hour
)

// A Phase is one step.
type Phase struct{ Name, Alias, Short string }

// Phases are those of a verb in their order.
func Phases(v Verb) []Phase {
	all := []Phase{
		{PhaseApplication, "app", "Create the application and its service principal"},
		{PhaseIdentity, "mi", "Create the user-assigned managed identity"},
		{PhaseAccount, "sa", "Create or annotate the Kubernetes service account"},
		{PhaseFederated, "fi", "Let the service account's tokens stand for the identity"},
		{PhaseRoleAssignment, "ra", "Give the identity a role in Azure"},
	}
	if v == Delete {
		all[0].Short = "Delete the application, its service principal and its federated credentials"
		all[1].Short = "Delete the managed identity, if create made it"
		all[2].Short = "Delete the Kubernetes service account"
		all[3].Short = "Delete the federated credential of the service account"
		all[4].Short = "Take the role away that create gave"
		return []Phase{all[4], all[3], all[2], all[0], all[1]}
	}
	return all
}

// FindPhase returns the phase with a name or alias.
func FindPhase(v Verb, name string) (Phase, error) {
	var names []string
	for _, p := range Phases(v) {
		if name == p.Name || name == p.Alias {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Phase{}, fmt.Errorf("phase '%s' not found. Valid phases are: %v", name, names)
}

// Options say what is connected with what.
type Options struct {
	Namespace  string // of the service account
	Name       string // of the service account
	Issuer     string // URL of the cluster's issuer of tokens
	Audience   string // of the tokens; empty means federated.Audience
	Expiration time.Duration

	ApplicationName     string // display name; empty means DefaultApplicationName
	ApplicationClientID string
	ApplicationObjectID string
	PrincipalName       string // display name of a service principal
	PrincipalObjectID   string

	IdentityID       string // resource id of a managed identity
	IdentityLocation string // empty means that of its resource group

	Scope          string // resource id that the role is for
	Role           string // name or GUID
	RoleAssignment string // resource id, to delete it

	DryRun bool
}

// DefaultApplicationName is the name of the application of a service account.
func DefaultApplicationName(namespace, name, issuer string) string {
	sum := sha256.Sum256([]byte(issuer))
	return namespace + "-" + name + "-" + base64.URLEncoding.EncodeToString(sum[:])
}

func (o Options) applicationName() string {
	if o.ApplicationName == "" && o.Namespace != "" && o.Name != "" && o.Issuer != "" {
		return DefaultApplicationName(o.Namespace, o.Name, o.Issuer)
	}
	return o.ApplicationName
}

// managed reports whether the identity is a managed identity.
func (o Options) managed() bool { return o.IdentityID != "" }

// Plan returns the phases that are to run: all but those to skip, and of
// aad-application and managed-identity the one that the options are about.
// Names may be aliases.
func (o Options) Plan(v Verb, skip []string) ([]string, error) {
	var without []string
	for _, name := range skip {
		p, err := FindPhase(v, strings.TrimSpace(name))
		if err != nil {
			return nil, err
		}
		without = append(without, p.Name)
	}
	if o.managed() {
		without = append(without, PhaseApplication)
	} else {
		without = append(without, PhaseIdentity)
	}
	if v == Delete && !slices.Contains(without, PhaseApplication) {
		without = append(without, PhaseFederated) // goes with the application
	}
	var out []string
	for _, p := range Phases(v) {
		if !slices.Contains(without, p.Name) {
			out = append(out, p.Name)
		}
	}
	return out, nil
}

// Check says which option is missing or wrong for the phases, in terms of flags.
func (o Options) Check(v Verb, phases []string) error {
	if o.Namespace != "" {
		if wrong := validation.IsDNS1123Label(o.Namespace); len(wrong) > 0 {
			return fmt.Errorf("--service-account-namespace %q is not a namespace's name: %s", o.Namespace, wrong[0])
		}
	}
	if o.Name != "" {
		if wrong := validation.IsDNS1123Subdomain(o.Name); len(wrong) > 0 {
			return fmt.Errorf("--service-account-name %q is not a service account's name: %s", o.Name, wrong[0])
		}
	}
	if err := o.checkIdentity(); err != nil {
		return err
	}
	if slices.Contains(phases, PhaseApplication) && len(phases) > 1 && o.ApplicationName == "" {
		// The application's name follows from these; their flags are what is missed.
		if err := required("service-account-namespace", o.Namespace, "service-account-name", o.Name, "service-account-issuer-url", o.Issuer); err != nil {
			return err
		}
	}
	for _, phase := range phases {
		if err := o.check(v, phase); err != nil {
			return err
		}
	}
	return nil
}

func (o Options) checkIdentity() error {
	if o.IdentityID != "" {
		if id, err := azure.ParseResourceID(o.IdentityID); err != nil || !id.Is(azure.TypeManagedIdentity) || id.ResourceGroup == "" {
			return fmt.Errorf("--managed-identity-resource-id %q is not like /subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/%s/NAME", o.IdentityID, azure.TypeManagedIdentity)
		}
		if o.ApplicationName != "" || o.ApplicationClientID != "" || o.ApplicationObjectID != "" {
			return errors.New("--managed-identity-... and --aad-application-... exclude each other: a service account has one identity")
		}
	}
	if o.Issuer != "" {
		if u, err := url.Parse(o.Issuer); err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("--service-account-issuer-url %q must be a URL such as https://host/path: Entra reads the issuer's keys there", o.Issuer)
		}
	}
	return nil
}

// required returns the first flag that has no value.
func required(flagsAndValues ...string) error {
	for i := 0; i < len(flagsAndValues); i += 2 {
		if flagsAndValues[i+1] == "" {
			return fmt.Errorf("--%s is required", flagsAndValues[i])
		}
	}
	return nil
}

func (o Options) check(v Verb, phase string) error {
	account := []string{"service-account-namespace", o.Namespace, "service-account-name", o.Name}
	switch phase {
	case PhaseApplication:
		if o.ApplicationClientID != "" || o.ApplicationObjectID != "" {
			return nil
		}
		return required("aad-application-name", o.applicationName())
	case PhaseIdentity:
		if o.IdentityID == "" {
			return errors.New("--managed-identity-name or --managed-identity-resource-id is required")
		}
		return required(account...)
	case PhaseAccount:
		if err := required(account...); err != nil || v == Delete {
			return err
		}
		if o.Expiration < MinExpiration {
			return fmt.Errorf("--service-account-token-expiration must be greater than or equal to %s", MinExpiration)
		}
		if o.Expiration > MaxExpiration {
			return fmt.Errorf("--service-account-token-expiration must be less than or equal to %s", MaxExpiration)
		}
		return o.checkFound("client-id", o.ApplicationClientID)
	case PhaseFederated:
		if err := required(append(account, "service-account-issuer-url", o.Issuer)...); err != nil {
			return err
		}
		return o.checkFound("object-id", o.ApplicationObjectID)
	case PhaseRoleAssignment:
		if v == Delete && o.RoleAssignment != "" {
			id, err := azure.ParseResourceID(o.RoleAssignment)
			if err == nil && !id.Is(azure.TypeRoleAssignment) {
				err = fmt.Errorf("it is no %s", azure.TypeRoleAssignment)
			}
			if err != nil {
				return fmt.Errorf("--role-assignment-id: %w", err)
			}
			return nil
		}
		if v == Create {
			if err := required("azure-scope", o.Scope, "azure-role", o.Role); err != nil {
				return fmt.Errorf("%w (or --skip-phases %s)", err, PhaseRoleAssignment)
			}
			if _, err := azure.ParseResourceID(o.Scope); err != nil {
				return fmt.Errorf("--azure-scope: %w", err)
			}
		}
		if o.PrincipalObjectID != "" || o.PrincipalName != "" {
			return nil
		}
		if err := o.checkFound("client-id", o.ApplicationClientID); err != nil {
			return errors.New("--service-principal-name or --service-principal-object-id is required")
		}
	}
	return nil
}

// checkFound wants anything by which the identity is found.
func (o Options) checkFound(what, value string) error {
	if o.managed() || value != "" || o.applicationName() != "" || o.ApplicationClientID != "" || o.ApplicationObjectID != "" {
		return nil
	}
	return fmt.Errorf("--aad-application-name or --aad-application-%s is required (or --managed-identity-resource-id)", what)
}

// A Step is what was done to one object.
type Step struct {
	Phase  string `json:"phase"`
	Action string `json:"action"`           // created, updated, unchanged, deleted, absent, kept
	Object string `json:"object"`           // for people
	ID     string `json:"id,omitempty"`     // in Azure
	Detail string `json:"detail,omitempty"` // for people
}

// A Result is what a run did and found.
type Result struct {
	DryRun bool   `json:"dryRun,omitempty"` // then nothing was done
	Steps  []Step `json:"steps"`

	Identity            *federated.Parent     `json:"identity,omitempty"`
	ServiceAccount      *Account              `json:"serviceAccount,omitempty"`
	FederatedCredential *federated.Credential `json:"federatedCredential,omitempty"`
	RoleAssignment      *RoleAssignment       `json:"roleAssignment,omitempty"`
}

// An Account is a service account with the annotations that it has got.
type Account struct {
	Namespace   string            `json:"namespace"`
	Name        string            `json:"name"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// A Runner runs phases. Connect, Cluster and Options must be set.
type Runner struct {
	Options Options
	// Connect signs in to Azure, Cluster finds the cluster. Each is called once,
	// by the first phase that needs it.
	Connect func(ctx context.Context) (*Azure, error)
	Cluster func() (client.Client, error)
	// Progress is told of each step; nil means that nobody is.
	Progress func(Step)
	// Wait is how long at first is waited for what was made a moment ago to be
	// known everywhere in Azure; 0 means a second.
	Wait time.Duration

	azure   *Azure
	cluster client.Client
	parent  *federated.Parent
	app     *graph.Application
	fresh   bool // the identity was made by this run
	pending bool // the identity would have been made by this run
	result  Result
}

// Run runs the phases of a verb, which Plan or FindPhase returned. The result
// is good after an error too: it is what was done before.
func (r *Runner) Run(ctx context.Context, v Verb, phases []string) (Result, error) {
	if err := r.Options.Check(v, phases); err != nil {
		return Result{}, err
	}
	r.result = Result{DryRun: r.Options.DryRun, Steps: []Step{}}
	steps := map[string]func(context.Context) error{
		PhaseApplication: r.createApplication, PhaseIdentity: r.createIdentity, PhaseAccount: r.createAccount,
		PhaseFederated: r.createFederated, PhaseRoleAssignment: r.createRoleAssignment,
	}
	if v == Delete {
		steps = map[string]func(context.Context) error{
			PhaseApplication: r.deleteApplication, PhaseIdentity: r.deleteIdentity, PhaseAccount: r.deleteAccount,
			PhaseFederated: r.deleteFederated, PhaseRoleAssignment: r.deleteRoleAssignment,
		}
	}
	for _, phase := range phases {
		if err := steps[phase](ctx); err != nil {
			return r.result, fmt.Errorf("phase %s: %w", phase, err)
		}
	}
	return r.result, nil
}

func (r *Runner) step(phase, action, object, id, detail string) {
	s := Step{Phase: phase, Action: action, Object: object, ID: id, Detail: detail}
	r.result.Steps = append(r.result.Steps, s)
	if r.Progress != nil {
		r.Progress(s)
	}
}

func (r *Runner) connect(ctx context.Context) (*Azure, error) {
	if r.azure == nil {
		a, err := r.Connect(ctx)
		if err != nil {
			return nil, err
		}
		r.azure = a
	}
	return r.azure, nil
}

func (r *Runner) connectCluster() (client.Client, error) {
	if r.cluster == nil {
		c, err := r.Cluster()
		if err != nil {
			return nil, err
		}
		r.cluster = c
	}
	return r.cluster, nil
}
