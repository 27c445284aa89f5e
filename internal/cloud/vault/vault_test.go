package vault_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/vault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	subscription = "/subscriptions/" + cloudtest.SubscriptionID
	rg           = subscription + "/resourceGroups/rg"
	vaults       = rg + "/providers/Microsoft.KeyVault/vaults/"
)

// A fixture is a cloud with the vault Demo, in which the application officer is Key Vault Secrets Officer.
type fixture struct {
	*cloudtest.Cloud
	officer   azcore.TokenCredential
	officerSP directory.ServicePrincipal
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{Cloud: cloudtest.New(t)}
	s := &vault.Server{DB: f.DB, Verify: f.Login.Verify, Now: f.Now, Logger: f.Logger()}
	f.Management.VaultDeleted = vault.DeleteVault
	f.Handle(azure.SuffixVault, s.Handler())
	f.Do("PUT", rg, map[string]any{"location": "eastus"}, nil)
	f.newVault("Demo", map[string]any{"enableRbacAuthorization": true})
	f.officerSP, f.officer = f.Application("officer")
	f.grant(f.officerSP.ID, azure.RoleKeyVaultSecretsOfficer, vaults+"Demo")
	return f
}

func (f *fixture) newVault(name string, properties map[string]any) {
	f.T.Helper()
	properties["tenantId"], properties["sku"] = f.Tenant.ID, map[string]any{"family": "A", "name": "standard"}
	f.Do("PUT", vaults+name, map[string]any{"location": "eastus", "properties": properties}, nil)
}

func (f *fixture) grant(principal, role, scope string) {
	f.T.Helper()
	f.Do("PUT", scope+"/providers/Microsoft.Authorization/roleAssignments/"+uuid.NewString(), map[string]any{"properties": map[string]any{
		"roleDefinitionId": subscription + "/providers/Microsoft.Authorization/roleDefinitions/" + role, "principalId": principal}}, nil)
}

// client is the real SDK with its own verification of the challenge.
func (f *fixture) client(name string, cred azcore.TokenCredential) *azsecrets.Client {
	f.T.Helper()
	cl, err := azsecrets.NewClient("https://"+name+"."+azure.SuffixVault, cred, &azsecrets.ClientOptions{ClientOptions: f.Options()})
	if err != nil {
		f.T.Fatal(err)
	}
	return cl
}

// code is the status, code and inner code of the SDK's error.
func code(t *testing.T, err error) string {
	t.Helper()
	var e *azcore.ResponseError
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an error of the service", err)
	}
	raw, err := io.ReadAll(e.RawResponse.Body)
	if err != nil {
		t.Fatal(err)
	}
	var body struct {
		Error struct {
			InnerError struct{ Code string }
		}
	}
	if err := json.Unmarshal(raw, &body); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s %s", e.StatusCode, e.ErrorCode, body.Error.InnerError.Code))
}

func TestSecretsWithTheSDK(t *testing.T) {
	f := newFixture(t)
	cl, ctx := f.client("demo", f.officer), t.Context()
	first, err := cl.SetSecret(ctx, "Db-Password", azsecrets.SetSecretParameters{Value: to.Ptr("one"), ContentType: to.Ptr("text/plain"), Tags: map[string]*string{"a": to.Ptr("b")}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if id := string(*first.ID); !strings.HasPrefix(id, "https://demo.vault.azure.net/secrets/Db-Password/") || len(first.ID.Version()) != 32 {
		t.Errorf("id %s", id)
	}
	second, err := cl.SetSecret(ctx, "db-password", azsecrets.SetSecretParameters{Value: to.Ptr("two")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ version, want string }{"the latest": {"", "two"}, "the first": {first.ID.Version(), "one"}, "the second": {second.ID.Version(), "two"}} {
		got, err := cl.GetSecret(ctx, "DB-PASSWORD", tt.version, nil)
		if err != nil || *got.Value != tt.want {
			t.Errorf("%s: %v, %v", name, got.Value, err)
		}
	}
	got, err := cl.GetSecret(ctx, "db-password", first.ID.Version(), nil)
	if err != nil || *got.ContentType != "text/plain" || *got.Tags["a"] != "b" || *got.Attributes.RecoveryLevel != "Recoverable+Purgeable" || *got.Attributes.RecoverableDays != 90 || !*got.Attributes.Enabled {
		t.Errorf("bundle %+v, %v", got.Secret, err)
	}
	updated, err := cl.UpdateSecretProperties(ctx, "db-password", second.ID.Version(), azsecrets.UpdateSecretPropertiesParameters{SecretAttributes: &azsecrets.SecretAttributes{Enabled: to.Ptr(false)}}, nil)
	if err != nil || *updated.Attributes.Enabled || updated.Value != nil {
		t.Errorf("update: %v", err)
	}
	if _, err := cl.GetSecret(ctx, "db-password", "", nil); code(t, err) != "403 Forbidden SecretDisabled" {
		t.Error(err)
	}
	var versions []string
	for pager := cl.NewListSecretPropertiesVersionsPager("db-password", nil); pager.More(); {
		p, err := pager.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range p.Value {
			versions = append(versions, v.ID.Version())
		}
	}
	if len(versions) != 2 {
		t.Errorf("versions %v", versions)
	}
}

func TestListsHavePages(t *testing.T) {
	f := newFixture(t)
	cl, ctx := f.client("demo", f.officer), t.Context()
	want := map[string]bool{}
	for i := range 53 {
		name := fmt.Sprintf("s%02d", i)
		want[name] = true
		if _, err := cl.SetSecret(ctx, name, azsecrets.SetSecretParameters{Value: to.Ptr("x")}, nil); err != nil {
			t.Fatal(err)
		}
	}
	pages := 0
	for pager := cl.NewListSecretPropertiesPager(nil); pager.More(); pages++ {
		p, err := pager.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range p.Value {
			if s.ID.Version() != "" || !want[s.ID.Name()] {
				t.Errorf("unexpected, or twice: %s", *s.ID)
			}
			delete(want, s.ID.Name())
		}
	}
	if pages != 3 || len(want) != 0 {
		t.Errorf("%d pages, missing %v", pages, want)
	}
}

func TestDeletedSecretsCanBeRecoveredOrPurged(t *testing.T) {
	f := newFixture(t)
	cl, ctx := f.client("demo", f.officer), t.Context()
	set := func(name string) error {
		_, err := cl.SetSecret(ctx, name, azsecrets.SetSecretParameters{Value: to.Ptr("x")}, nil)
		return err
	}
	if err := set("s"); err != nil {
		t.Fatal(err)
	}
	deleted, err := cl.DeleteSecret(ctx, "s", nil)
	if err != nil {
		t.Fatal(err)
	}
	if *deleted.RecoveryID != "https://demo.vault.azure.net/deletedsecrets/s" || deleted.ScheduledPurgeDate.Sub(*deleted.DeletedDate) != 90*24*time.Hour || deleted.Value != nil {
		t.Errorf("deleted: %+v", deleted.DeletedSecret)
	}
	if _, err := cl.GetSecret(ctx, "s", "", nil); code(t, err) != "404 SecretNotFound" {
		t.Error(err)
	}
	if err := set("S"); code(t, err) != "409 Conflict ObjectIsDeletedButRecoverable" {
		t.Error(err)
	}
	if got, err := cl.GetDeletedSecret(ctx, "s", nil); err != nil || got.DeletedDate == nil {
		t.Error(err)
	}
	if _, err := cl.RecoverDeletedSecret(ctx, "s", nil); err != nil {
		t.Error(err)
	}
	if got, err := cl.GetSecret(ctx, "s", "", nil); err != nil || *got.Value != "x" {
		t.Error(err)
	}
	if _, err := cl.GetDeletedSecret(ctx, "s", nil); code(t, err) != "404 SecretNotFound" || !strings.Contains(err.Error(), "Deleted Secret not found: s") {
		t.Error(err)
	}
	if _, err := cl.DeleteSecret(ctx, "s", nil); err != nil {
		t.Error(err)
	}
	n := 0
	for pager := cl.NewListDeletedSecretPropertiesPager(nil); pager.More(); {
		p, err := pager.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n += len(p.Value)
	}
	if n != 1 {
		t.Errorf("%d deleted secrets", n)
	}
	if _, err := cl.PurgeDeletedSecret(ctx, "s", nil); err != nil {
		t.Error(err)
	}
	if _, err := cl.PurgeDeletedSecret(ctx, "s", nil); code(t, err) != "404 SecretNotFound" {
		t.Error(err)
	}
	if err := set("s"); err != nil {
		t.Errorf("the name is free again: %v", err)
	}
	if _, err := cl.DeleteSecret(ctx, "s", nil); err != nil {
		t.Error(err)
	}
	f.Advance(90 * 24 * time.Hour)
	if _, err := f.client("demo", f.officer).GetDeletedSecret(ctx, "s", nil); err == nil {
		t.Error("a deleted secret outlives its retention")
	}
}

func TestPurgeProtection(t *testing.T) {
	f := newFixture(t)
	f.newVault("safe", map[string]any{"enableRbacAuthorization": true, "enablePurgeProtection": true, "softDeleteRetentionInDays": 7})
	f.grant(f.officerSP.ID, azure.RoleKeyVaultAdministrator, vaults+"safe")
	cl, ctx := f.client("safe", f.officer), t.Context()
	set, err := cl.SetSecret(ctx, "s", azsecrets.SetSecretParameters{Value: to.Ptr("x")}, nil)
	if err != nil || *set.Attributes.RecoveryLevel != "Recoverable" || *set.Attributes.RecoverableDays != 7 {
		t.Fatalf("%+v, %v", set.Attributes, err)
	}
	if _, err := cl.DeleteSecret(ctx, "s", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.PurgeDeletedSecret(ctx, "s", nil); code(t, err) != "403 Forbidden ForbiddenByPolicy" {
		t.Error(err)
	}
}

func TestBackupAndRestore(t *testing.T) {
	f := newFixture(t)
	f.newVault("other", map[string]any{"enableRbacAuthorization": true})
	f.grant(f.officerSP.ID, azure.RoleKeyVaultSecretsOfficer, vaults+"other")
	from, into, ctx := f.client("demo", f.officer), f.client("other", f.officer), t.Context()
	if _, err := from.SetSecret(ctx, "s", azsecrets.SetSecretParameters{Value: to.Ptr("hush")}, nil); err != nil {
		t.Fatal(err)
	}
	b, err := from.BackupSecret(ctx, "s", nil)
	if err != nil || strings.Contains(string(b.Value), "hush") {
		t.Fatalf("backup: %v", err)
	}
	if _, err := into.RestoreSecret(ctx, azsecrets.RestoreSecretParameters{SecretBackup: b.Value}, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := into.GetSecret(ctx, "s", "", nil); err != nil || *got.Value != "hush" {
		t.Errorf("restored: %v", err)
	}
	if _, err := into.RestoreSecret(ctx, azsecrets.RestoreSecretParameters{SecretBackup: b.Value}, nil); code(t, err) != "409 Conflict" {
		t.Error(err)
	}
	b.Value[len(b.Value)-1] ^= 1
	if _, err := into.RestoreSecret(ctx, azsecrets.RestoreSecretParameters{SecretBackup: b.Value}, nil); code(t, err) != "400 BadParameter" {
		t.Error(err)
	}
}

// Who may do what to which secret.
func TestRolesGate(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	officer := f.client("demo", f.officer)
	for _, name := range []string{"mine", "other", "mine2"} {
		if _, err := officer.SetSecret(ctx, name, azsecrets.SetSecretParameters{Value: to.Ptr(name)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	onOne, one := f.Application("one")
	f.grant(onOne.ID, azure.RoleKeyVaultSecretsUser, vaults+"demo/secrets/mine")
	readerSP, reader := f.Application("reader")
	f.grant(readerSP.ID, azure.RoleKeyVaultReader, vaults+"demo")
	_, nobody := f.Application("nobody")
	get := func(cred azcore.TokenCredential, name string) func() error {
		return func() error { _, err := f.client("demo", cred).GetSecret(ctx, name, "", nil); return err }
	}
	list := func(cred azcore.TokenCredential) func() error {
		return func() error {
			_, err := f.client("demo", cred).NewListSecretPropertiesPager(nil).NextPage(ctx)
			return err
		}
	}
	for name, tt := range map[string]struct {
		do      func() error
		allowed bool
	}{
		"the secret with the role":                  {get(one, "mine"), true},
		"in another case":                           {get(one, "MINE"), true},
		"another secret":                            {get(one, "other"), false},
		"a secret whose name starts the same":       {get(one, "mine2"), false},
		"a secret that does not exist is no oracle": {get(one, "none"), false},
		"the list of the vault":                     {list(one), false},
		"a reader lists":                            {list(reader), true},
		"a reader reads no value":                   {get(reader, "mine"), false},
		"nobody reads nothing":                      {get(nobody, "mine"), false},
		"Owner of the subscription reads nothing":   {get(f.Owner(), "mine"), false},
		"a user does not write": {func() error {
			_, err := f.client("demo", one).SetSecret(ctx, "mine", azsecrets.SetSecretParameters{Value: to.Ptr("x")}, nil)
			return err
		}, false},
		"a user does not delete": {func() error { _, err := f.client("demo", one).DeleteSecret(ctx, "mine", nil); return err }, false},
		"a user does not back up": {func() error {
			_, err := f.client("demo", one).BackupSecret(ctx, "mine", nil)
			return err
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := tt.do()
			if tt.allowed {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if got := code(t, err); got != "403 Forbidden ForbiddenByRbac" {
				t.Errorf("got %s", got)
			}
		})
	}
	if log := f.Log.String(); !strings.Contains(log, "does not have the action") || !strings.Contains(log, "no role assignment") {
		t.Error("the log does not say why")
	}
}

func TestForbiddenTextIsAzures(t *testing.T) {
	f := newFixture(t)
	sp, cred := f.Application("nobody")
	_, err := f.client("demo", cred).GetSecret(t.Context(), "s", "", nil)
	var e *azcore.ResponseError
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(e.RawResponse.Body)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"error":{"code":"Forbidden","message":"Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role definitions were changed recently, please observe propagation time.\r\nCaller: appid=` + sp.AppID + `;oid=` + sp.ID + `;iss=https://sts.windows.net/` + f.Tenant.ID + `/\r\nAction: 'Microsoft.KeyVault/vaults/secrets/getSecret/action'\r\nResource: '` + subscription + `/resourcegroups/rg/providers/microsoft.keyvault/vaults/Demo/secrets/s'\r\nAssignment: (not found)\r\nDenyAssignmentId: null\r\nDecisionReason: 'DeniedWithNoValidRBAC' \r\nVault: Demo;location=eastus\r\n","innererror":{"code":"ForbiddenByRbac"}}}` + "\n"
	if string(raw) != want {
		t.Errorf("got  %s\nwant %s", raw, want)
	}
}

func TestAccessPoliciesGateAVaultWithoutRBAC(t *testing.T) {
	f := newFixture(t)
	sp, cred := f.Application("app")
	f.newVault("old", map[string]any{"accessPolicies": []any{map[string]any{"tenantId": f.Tenant.ID, "objectId": sp.ID, "permissions": map[string]any{"secrets": []string{"Get", "set"}}}}})
	f.grant(f.officerSP.ID, azure.RoleKeyVaultSecretsOfficer, vaults+"old")
	cl, ctx := f.client("old", cred), t.Context()
	if _, err := cl.SetSecret(ctx, "s", azsecrets.SetSecretParameters{Value: to.Ptr("x")}, nil); err != nil {
		t.Error(err)
	}
	if _, err := cl.GetSecret(ctx, "s", "", nil); err != nil {
		t.Error(err)
	}
	if _, err := cl.NewListSecretPropertiesPager(nil).NextPage(ctx); code(t, err) != "403 Forbidden AccessDenied" {
		t.Error(err)
	}
	if _, err := f.client("old", f.officer).GetSecret(ctx, "s", "", nil); code(t, err) != "403 Forbidden AccessDenied" {
		t.Errorf("a role opens a vault without RBAC: %v", err)
	}
}

func TestSecretsGoWithTheirVault(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	if _, err := f.client("demo", f.officer).SetSecret(ctx, "s", azsecrets.SetSecretParameters{Value: to.Ptr("x")}, nil); err != nil {
		t.Fatal(err)
	}
	f.Do("DELETE", vaults+"demo", nil, nil)
	if _, err := f.client("demo", f.officer).GetSecret(ctx, "s", "", nil); code(t, err) != "404 VaultNotFound" {
		t.Error(err)
	}
	f.newVault("demo", map[string]any{"enableRbacAuthorization": true})
	if _, err := f.client("demo", f.officer).GetSecret(ctx, "s", "", nil); code(t, err) != "403 Forbidden ForbiddenByRbac" {
		t.Errorf("a role of the vault that was deleted opens its namesake: %v", err)
	}
	f.grant(f.officerSP.ID, azure.RoleKeyVaultSecretsOfficer, vaults+"demo")
	if _, err := f.client("demo", f.officer).GetSecret(ctx, "s", "", nil); code(t, err) != "404 SecretNotFound" {
		t.Error(err)
	}
}
