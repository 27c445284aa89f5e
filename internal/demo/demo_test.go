package demo

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestManifestFillsEveryPlaceholder(t *testing.T) {
	values := map[string]string{
		"a-idname": "vpl-id", "subid": "00000000-0000-0000-0000-000000000001", "resourcegroup": "rg",
		"managedidentity-resourcename": "vpl-id", "clientid": "00000000-0000-0000-0000-000000000002",
	}
	u, err := manifest("azureidentity.yaml", values)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"type":       int64(0),
		"ResourceID": "/subscriptions/00000000-0000-0000-0000-000000000001/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/vpl-id",
		"ClientID":   "00000000-0000-0000-0000-000000000002",
	}
	if diff := cmp.Diff(want, u.Object["spec"]); diff != "" {
		t.Errorf("the spec is not document 001's, filled (-want +got):\n%s", diff)
	}
}

func TestManifestRefusesWhatItCannotFill(t *testing.T) {
	for name, tt := range map[string]struct {
		file   string
		values map[string]string
		want   string
	}{
		"a placeholder without a value": {"azureidentitybinding.yaml", map[string]string{"a-idname": "x"}, "nothing fills the placeholder"},
		"a value without a placeholder": {"vpl-id-to-little-pod.yaml", map[string]string{"a-idname": "x"}, "has no placeholder <a-idname>"},
		"a file that does not exist":    {"nothing.yaml", nil, "nothing.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := manifest(tt.file, tt.values)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	created := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		scene  scene
		report report
		want   Row
	}{
		"a pod that is to read the secret and does": {
			scene{row: Row{Want: secretRead}},
			report{OK: true, FirstToken: created.Add(1500 * time.Millisecond), SecondTokenMillis: 2.5},
			Row{Want: secretRead, Result: "secret read", OK: true, FirstToken: 1500 * time.Millisecond, SecondToken: 2500 * time.Microsecond},
		},
		"a pod that is to read the secret and is refused": {
			scene{row: Row{Want: secretRead}},
			report{Status: 403, Error: "token\nfailure"},
			Row{Want: secretRead, Result: "refused (403)", Reason: "token\nfailure"},
		},
		"a pod that is to be refused and reads the secret": {
			scene{row: Row{Want: refused}, refusal: "x"},
			report{OK: true, FirstToken: created.Add(time.Second)},
			Row{Want: refused, Result: "secret read", FirstToken: time.Second},
		},
		"a pod that is refused for another reason than the story's": {
			scene{row: Row{Want: refused}, refusal: "aadpodidbinding"},
			report{Status: 500, Error: "internal error"},
			Row{Want: refused, Result: "refused (500)", Reason: "internal error"},
		},
		"a pod that is refused for the story's reason": {
			scene{row: Row{Want: refused}, refusal: "aadpodidbinding"},
			report{Status: 404, Error: "the pod has no label aadpodidbinding"},
			Row{Want: refused, Result: "refused (404)", Reason: "the pod has no label aadpodidbinding", OK: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, judge(tt.scene, tt.report, created)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestTheLastReportCounts(t *testing.T) {
	r, err := lastReport([]byte("attempt 1: 404\n{\"ok\":false,\"error\":\"old\"}\n{\"ok\":true}\nbye\n"))
	if err != nil || !r.OK {
		t.Errorf("got %+v, %v", r, err)
	}
	for text, want := range map[string]string{"": "printed nothing", "exec format error": "printed no report, but: exec format error"} {
		if _, err := lastReport([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestTheTableMarksWhatFailed(t *testing.T) {
	rows := []Row{
		{Door: doorIMDS, Pod: "default/a", Identity: "i", Resource: "v/secrets/s", Result: secretRead, OK: true, FirstToken: 1234 * time.Millisecond, SecondToken: 900 * time.Microsecond},
		{Door: doorEntra, Pod: "saman/b", Identity: "j", Resource: "v/secrets/s", Result: "refused (403): no"},
	}
	var b strings.Builder
	if err := WriteTable(&b, rows); err != nil {
		t.Fatal(err)
	}
	want := `        DOOR            POD        IDENTITY  RESOURCE     RESULT             POD CREATED TO FIRST TOKEN  SECOND TOKEN
ok      1 IMDS          default/a  i         v/secrets/s  secret read        1.23 s                      0.9 ms
FAILED  2 Entra direct  saman/b    j         v/secrets/s  refused (403): no  -                           -
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if failed := Failed(rows); len(failed) != 1 || failed[0].Pod != "saman/b" {
		t.Errorf("Failed: %+v", failed)
	}
	text, err := json.Marshal(rows[0])
	if err != nil {
		t.Fatal(err)
	}
	const wantJSON = `{"door":"1 IMDS","pod":"default/a","identity":"i","resource":"v/secrets/s","want":"","result":"secret read","ok":true,"firstTokenMillis":1234,"secondTokenMillis":0.9}`
	if string(text) != wantJSON {
		t.Errorf("got %s\nwant %s", text, wantJSON)
	}
}

func TestRefusalsAreReadable(t *testing.T) {
	for reason, want := range map[string]string{
		`imds answered 404: {"error":"not_found","error_description":"no label"}`:                    "imds answered 404: no label",
		`vault answered 403: {"error":{"code":"Forbidden","message":"Caller is\r\nnot authorized"}}`: "vault answered 403: Caller is not authorized",
		`vault answered 502: {"half`: `vault answered 502: {"half`,
		"plain\ntext":                "plain text",
		`{"error":"only a code"}`:    `{"error":"only a code"}`,
	} {
		if got := readable(reason); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
