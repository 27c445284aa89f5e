package accounts_test

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/federation/accounts"
)

const a, b = "aaaaaaaa-0000-0000-0000-000000000001", "BBBBBBBB-0000-0000-0000-000000000002"

func TestDesired(t *testing.T) {
	var fifty []string
	for i := range 60 {
		fifty = append(fifty, fmt.Sprintf("aaaaaaaa-0000-0000-0000-%012d", i))
	}
	for name, tc := range map[string]struct {
		client, more, tenant string
		want                 string // names and client ids
		problems             int
	}{
		"nothing":                             {},
		"one identity":                        {client: a, want: "web=" + a},
		"white space around it":               {client: " " + a + "\n", want: "web=" + a},
		"more identities":                     {client: a, more: b + " , ", want: "web=" + a + " web-bbbbbbbb=" + strings.ToLower(b)},
		"only more":                           {more: b, want: "web-bbbbbbbb=" + strings.ToLower(b)},
		"the same twice":                      {client: a, more: strings.ToUpper(a) + "," + a, want: "web=" + a},
		"no client id":                        {client: "web", problems: 1},
		"one of them is no client id":         {client: a, more: "x," + b, want: "web=" + a + " web-bbbbbbbb=" + strings.ToLower(b), problems: 1},
		"a tenant":                            {client: a, tenant: b, want: "web=" + a + "@" + b},
		"a tenant that is a host":             {client: a, tenant: "attacker.example", problems: 1},
		"an empty tenant":                     {client: a, tenant: " ", want: "web=" + a},
		"far too many, and they do not count": {more: strings.Join(fifty, ","), problems: 10, want: "fifty"},
	} {
		t.Run(name, func(t *testing.T) {
			account := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "u", Annotations: map[string]string{
				workloadidentity.AnnotationClientID: tc.client, lanyard.AnnotationClientIDs: tc.more, workloadidentity.AnnotationTenantID: tc.tenant,
			}}}
			objects, problems := accounts.Desired(account)
			var got []string
			for _, f := range objects {
				text := f.Name + "=" + f.Spec.ClientID
				if f.Spec.TenantID != "" {
					text += "@" + f.Spec.TenantID
				}
				if !metav1.IsControlledBy(&f, account) || f.Spec.ServiceAccountName != "web" || f.Namespace != "ns" {
					t.Errorf("%+v", f)
				}
				got = append(got, text)
			}
			if len(problems) != tc.problems {
				t.Errorf("problems %q", problems)
			}
			if tc.want == "fifty" {
				if len(got) != 50 {
					t.Errorf("%d objects", len(got))
				}
			} else if text := strings.Join(got, " "); text != tc.want {
				t.Errorf("%q, want %q", text, tc.want)
			}
		})
	}
}

func TestNamesOfLongAccountsAreNames(t *testing.T) {
	for _, name := range []string{strings.Repeat("x", 253), strings.Repeat("x", 199) + "." + strings.Repeat("y", 53), strings.Repeat("x", 200) + "-y" + strings.Repeat("z", 45)} {
		objects, _ := accounts.Desired(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{lanyard.AnnotationClientIDs: a}}})
		if len(objects) != 1 {
			t.Fatalf("%d objects", len(objects))
		}
		if problems := validation.IsDNS1123Subdomain(objects[0].Name); len(problems) > 0 {
			t.Errorf("%q: %v", objects[0].Name, problems)
		}
	}
}
