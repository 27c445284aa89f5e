package login

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

func TestManagedIdentityTokensVerify(t *testing.T) {
	f := newFixture(t)
	id := f.identity("billing")
	for _, res := range []string{
		"https://management.azure.com", "https://management.azure.com/",
		"https://management.core.windows.net", "https://management.core.windows.net/",
	} {
		tok, err := f.server.ManagedIdentityToken(t.Context(), id.ID, res)
		if err != nil {
			t.Fatal(err)
		}
		if tok.Resource != res || tok.ClientID != id.AppID || !tok.ExpiresOn.Equal(f.clock.Now().Add(86399*time.Second)) || !tok.NotBefore.Equal(f.clock.Now().Add(-300*time.Second)) {
			t.Errorf("token = %v, not before %v", tok, tok.NotBefore)
		}
		c, err := f.server.Verify(t.Context(), tok.AccessToken, azure.ManagementAudiences()...)
		if err != nil {
			t.Fatal(err)
		}
		want := Claims{
			TenantID: f.tenant.ID, ObjectID: id.ID, AppID: id.AppID, Audience: res, IDType: "app", Expiry: c.Expiry,
			MIResourceID: strings.Replace(id.ResourceID, "/resourceGroups/", "/resourcegroups/", 1),
		}
		if c != want || !c.Expiry.Equal(tok.ExpiresOn) {
			t.Errorf("claims = %+v\nwant %+v", c, want)
		}
		if s := fmt.Sprintf("%v %+v %#v %s", tok, tok, tok, tok); strings.Contains(s, tok.AccessToken) {
			t.Error("the token prints itself")
		}
	}
	if _, err := f.server.ManagedIdentityToken(t.Context(), f.mic.ID, azure.ResourceVault); !errors.Is(err, directory.ErrNotFound) {
		t.Errorf("an application got a managed identity's token: %v", err)
	}
	if _, err := f.server.ManagedIdentityToken(t.Context(), id.ID, "https://nowhere.example"); errorCode(err) != 500011 {
		t.Errorf("unknown resource: %v, want 500011", err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	f := newFixture(t)
	id := f.identity("billing")
	tok, err := f.server.ManagedIdentityToken(t.Context(), id.ID, azure.ResourceVault)
	if err != nil {
		t.Fatal(err)
	}
	good := tok.AccessToken
	parts := strings.Split(good, ".")
	own := f.server.keys.Load().signing()
	now := f.clock.Now()
	claims := func(change map[string]any) map[string]any {
		c := map[string]any{
			"ver": "1.0", "iss": issuerV1(f.tenant.ID), "aud": azure.ResourceVault, "tid": f.tenant.ID, "oid": id.ID, "appid": id.AppID,
			"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		}
		for k, v := range change {
			c[k] = v
		}
		return c
	}
	signed := func(header, change map[string]any) string {
		h := map[string]any{"kid": own.id}
		for k, v := range header {
			h[k] = v
		}
		raw, err := oidc.Sign(own.private, h, claims(change))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for name, tt := range map[string]struct {
		bearer string
		want   error
	}{
		"a sound token passes":                         {signed(nil, nil), nil},
		"no token":                                     {"", ErrTokenMissing},
		"something that is no token":                   {"bearer", ErrTokenInvalid},
		"a changed signature":                          {parts[0] + "." + parts[1] + "." + flip(parts[2]), ErrTokenInvalid},
		"changed claims":                               {parts[0] + "." + strings.Split(signed(nil, map[string]any{"oid": f.mic.ID}), ".")[1] + "." + parts[2], ErrTokenInvalid},
		"no signature":                                 {parts[0] + "." + parts[1] + ".", ErrTokenInvalid},
		"algorithm none":                               {segment(`{"alg":"none","kid":"`+own.id+`"}`) + "." + parts[1] + ".", ErrTokenInvalid},
		"HS256 with the public key as secret":          {hs256(t, own.id, own.public, claims(nil)), ErrTokenInvalid},
		"an unknown key of our issuer":                 {signed(map[string]any{"kid": "other"}, nil), ErrTokenInvalid},
		"an unknown key of another issuer":             {signed(map[string]any{"kid": "other"}, map[string]any{"iss": "https://sts.windows.net/other/"}), ErrTokenIssuer},
		"another tenant's issuer":                      {signed(nil, map[string]any{"iss": issuerV1("11111111-2222-3333-4444-555555555555")}), ErrTokenIssuer},
		"another tenant's tid":                         {signed(nil, map[string]any{"tid": "11111111-2222-3333-4444-555555555555"}), ErrTokenInvalid},
		"the issuer of the other version":              {signed(nil, map[string]any{"iss": issuerV2(f.tenant.ID)}), ErrTokenIssuer},
		"an unknown version":                           {signed(nil, map[string]any{"ver": "3.0"}), ErrTokenIssuer},
		"another audience":                             {signed(nil, map[string]any{"aud": azure.ResourceManagement}), ErrTokenAudience},
		"two audiences":                                {signed(nil, map[string]any{"aud": []string{azure.ResourceVault, azure.ResourceManagement}}), ErrTokenInvalid},
		"no audience":                                  {signed(nil, map[string]any{"aud": nil}), ErrTokenInvalid},
		"an expiry six minutes ago":                    {signed(nil, map[string]any{"exp": now.Add(-6 * time.Minute).Unix()}), ErrTokenExpired},
		"an expiry four minutes ago is within skew":    {signed(nil, map[string]any{"exp": now.Add(-4 * time.Minute).Unix()}), nil},
		"no expiry":                                    {signed(nil, map[string]any{"exp": nil}), ErrTokenInvalid},
		"an expiry that is text":                       {signed(nil, map[string]any{"exp": "9999999999"}), ErrTokenInvalid},
		"an expiry that overflows":                     {signed(nil, map[string]any{"exp": 1e300}), ErrTokenInvalid},
		"a start six minutes ahead":                    {signed(nil, map[string]any{"nbf": now.Add(6 * time.Minute).Unix()}), ErrTokenNotYet},
		"no start":                                     {signed(nil, map[string]any{"nbf": nil}), ErrTokenInvalid},
		"no object id":                                 {signed(nil, map[string]any{"oid": nil}), ErrTokenInvalid},
		"a token larger than we read":                  {signed(nil, map[string]any{"x": strings.Repeat("x", oidc.MaxTokenSize)}), ErrTokenInvalid},
		"critical extensions that we do not know":      {signed(map[string]any{"crit": []string{"b64"}}, nil), ErrTokenInvalid},
		"a version 2.0 token of our issuer is a token": {signed(nil, map[string]any{"ver": "2.0", "iss": issuerV2(f.tenant.ID), "azp": id.AppID}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := f.server.Verify(t.Context(), tt.bearer, azure.VaultAudiences()...)
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err != nil && c != (Claims{}) {
				t.Errorf("claims with a refusal: %+v", c)
			}
			if err != nil && len(tt.bearer) > 100 && strings.Contains(err.Error(), tt.bearer[len(tt.bearer)-40:]) {
				t.Error("the error shows the token")
			}
		})
	}
	if _, err := f.server.Verify(t.Context(), good); !errors.Is(err, ErrTokenAudience) {
		t.Errorf("Verify without audiences: %v, want ErrTokenAudience", err)
	}
	f.clock.Advance(24*time.Hour + 5*time.Minute)
	if _, err := f.server.Verify(t.Context(), good, azure.ResourceVault); !errors.Is(err, ErrTokenExpired) {
		t.Errorf("a day later: %v, want ErrTokenExpired", err)
	}
}

func TestRolledKeysStayUntilTheirTokensExpired(t *testing.T) {
	f := newFixture(t)
	id := f.identity("billing")
	tok, err := f.server.ManagedIdentityToken(t.Context(), id.ID, azure.ResourceVault)
	if err != nil {
		t.Fatal(err)
	}
	first := f.server.keys.Load().signing().id
	if err := f.server.RollKeys(); err != nil {
		t.Fatal(err)
	}
	if f.server.keys.Load().signing().id == first {
		t.Fatal("the old key still signs")
	}
	f.clock.Advance(24*time.Hour - 2*time.Second)
	f.restart()
	if n := len(f.server.keys.Load().keys); n != 2 {
		t.Fatalf("%d keys after a restart, want 2", n)
	}
	if f.server.keys.Load().signing().id == first {
		t.Fatal("the old key signs after a restart")
	}
	if _, err := f.server.Verify(t.Context(), tok.AccessToken, azure.ResourceVault); err != nil {
		t.Errorf("token of the old key: %v", err)
	}
	f.clock.Advance(time.Hour)
	if err := f.server.RollKeys(); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.server.keys.Load().find(first); ok {
		t.Error("the first key is still published a day after it was replaced")
	}
}
