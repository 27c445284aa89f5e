package access_test

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/schedule"
)

// What the API server accepts every typed client must be able to read: a single
// object that cannot be decoded would blind all watches. What it accepts the
// rules must understand, too, but for zones and cron, which no schema can know.
func TestWhatTheSchemaOfABindingAccepts(t *testing.T) {
	o := newOffice(t)
	for _, c := range []struct {
		name, spec string
		refused    string // part of the message; empty means accepted
	}{
		{"the fields of Pod Identity v1", "{azureIdentity: i, selector: l}", ""},
		{"the spelling of old releases", "{AzureIdentity: i, Selector: l}", ""},
		{"everything", `{azureIdentity: i, podSelector: {matchLabels: {app: x}}, serviceAccountName: a, serviceAccountNames: [b],
			notBefore: "2026-01-01T00:00:00Z", notAfter: "2026-01-01T00:00:00.5+02:00", access: OnRequest, minimumRemaining: 10m,
			schedule: {timeZone: Europe/Berlin, windows: [{days: [mon], start: "09:00", end: "24:00"}], cron: "0 9 * * *", duration: 1h30m, holidays: ["2026-12-25"]},
			approval: {automatic: [{groups: [sre], maxDuration: 999999s}]}}`, "notBefore must be earlier than notAfter"},
		{"everything, in order", `{azureIdentity: i, podSelector: {matchLabels: {app: x}}, serviceAccountName: a, serviceAccountNames: [b],
			notBefore: "2026-01-01T00:00:00Z", notAfter: "2026-01-01T00:00:00.5-02:00", access: OnRequest, minimumRemaining: 10m,
			schedule: {timeZone: Europe/Berlin, windows: [{days: [mon], start: "09:00", end: "24:00"}], cron: "0 9 * * *", duration: 1h30m, holidays: ["2026-12-25"]},
			approval: {automatic: [{groups: [sre], maxDuration: 999999s}]}}`, ""},
		{"instants that are equal", `{notBefore: "2026-01-01T00:00:00Z", notAfter: "2026-01-01T00:00:00Z"}`, "earlier"},
		{"lower case", `{notBefore: "2026-01-01t00:00:00z"}`, "notBefore"},
		{"a leap second", `{notBefore: "2026-01-01T23:59:60Z"}`, "notBefore"},
		{"a day that does not exist", `{notBefore: "2026-02-30T00:00:00Z"}`, "notBefore"},
		{"a date", `{notBefore: "2026-02-20"}`, "notBefore"},
		{"a duration in days", "{minimumRemaining: 1d}", "minimumRemaining"},
		{"a duration in words", "{minimumRemaining: 1 hour}", "minimumRemaining"},
		{"a number", "{minimumRemaining: 60}", "minimumRemaining"},
		{"no duration", `{minimumRemaining: ""}`, "minimumRemaining"},
		{"a duration beyond reason", "{minimumRemaining: 999999h999999m}", "8760h"},
		{"an access that does not exist", "{access: Sometimes}", "access"},
		{"approval without request", "{approval: {}}", "only with access: OnRequest"},
		{"a rule for nobody", "{access: OnRequest, approval: {automatic: [{maxDuration: 1h}]}}", "name users or groups"},
		{"a rule without limit", "{access: OnRequest, approval: {automatic: [{users: [a]}]}}", "maxDuration"},
		{"an empty schedule", "{schedule: {}}", "an empty schedule never opens"},
		{"cron without duration", `{schedule: {cron: "0 9 * * *"}}`, "give both or neither"},
		{"duration without cron", `{schedule: {duration: 1h, windows: [{start: "09:00", end: "10:00"}]}}`, "give both or neither"},
		{"a duration of nothing", `{schedule: {cron: "0 9 * * *", duration: 0s}}`, "more than 0s"},
		{"a start that is no time", `{schedule: {windows: [{start: "9:00", end: "10:00"}]}}`, "start"},
		{"a start at 24:00", `{schedule: {windows: [{start: "24:00", end: "10:00"}]}}`, "start"},
		{"an end after 24:00", `{schedule: {windows: [{start: "09:00", end: "24:30"}]}}`, "end"},
		{"a day that is written out", `{schedule: {windows: [{days: [monday], start: "09:00", end: "10:00"}]}}`, "days"},
		{"a holiday that does not exist", `{schedule: {windows: [{start: "09:00", end: "10:00"}], holidays: ["2026-02-30"]}}`, "holidays"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := &unstructured.Unstructured{}
			text := "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentityBinding\nmetadata: {generateName: b-, namespace: " + o.namespace + "}\nspec: " + strings.ReplaceAll(c.spec, "\t", " ")
			if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
				t.Fatal(err)
			}
			err := o.admin.Create(t.Context(), u)
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var b v1.AzureIdentityBinding
			if err := o.admin.Get(t.Context(), client.ObjectKeyFromObject(u), &b); err != nil {
				t.Fatalf("accepted, and cannot be read: %v", err)
			}
			if b.Spec.Schedule != nil {
				if _, err := schedule.New(b.Spec.Schedule); err != nil {
					t.Errorf("accepted, and cannot be understood: %v", err)
				}
			}
			if err := o.admin.Update(t.Context(), &b); err != nil {
				t.Errorf("cannot be written back: %v", err)
			}
		})
	}
}
