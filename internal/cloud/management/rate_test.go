package management_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
)

func TestManagedIdentitiesHaveALimitPerSecond(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	newIdentity(c, "demo")
	newIdentity(c, "other")
	bearer := c.Token(c.Owner(), azure.ResourceManagement)
	put := func(parent string, i int) (status int, retry, body string) {
		resp, body := send(c, request{method: "PUT", target: identities + parent + "/federatedIdentityCredentials/fic-" + fmt.Sprint(i) + version, bearer: bearer,
			body: fmt.Sprintf(`{"properties":{"issuer":"https://i.example","subject":"%d","audiences":["a"]}}`, i)})
		return resp.StatusCode, resp.Header.Get("Retry-After"), body
	}
	c.Limits = true
	n := 0
	for ; n < 10; n++ {
		if status, retry, body := put("demo", n); status == 429 {
			if retry != "4" || !strings.Contains(body, "TooManyRequests") {
				t.Errorf("Retry-After %s, %s", retry, body)
			}
			break
		}
	}
	if n != 5 { // 20 seconds of one in four
		t.Errorf("%d writes at once", n)
	}
	if status, _, body := put("other", 0); status != 201 {
		t.Errorf("another identity has a limit of its own: %d %s", status, body)
	}
	c.Advance(4 * time.Second)
	if status, _, body := put("DEMO", n); status != 201 {
		t.Errorf("after four seconds: %d %s", status, body)
	}
	c.Limits = false
	if status, _, body := put("demo", n+1); status != 201 {
		t.Errorf("without limits: %d %s", status, body)
	}
}

func TestAWriteOfAFederatedCredentialTakesItsTime(t *testing.T) {
	c := cloudtest.New(t)
	group(c)
	newIdentity(c, "demo")
	c.FederatedWrite = 300 * time.Millisecond
	bearer := c.Token(c.Owner(), azure.ResourceManagement)
	results := make(chan string, 4)
	for i := range 4 {
		go func() {
			resp, body := send(c, request{method: "PUT", target: identities + "demo/federatedIdentityCredentials/fic-" + fmt.Sprint(i) + version, bearer: bearer,
				body: fmt.Sprintf(`{"properties":{"issuer":"https://i.example","subject":"%d","audiences":["a"]}}`, i)})
			code := ""
			if strings.Contains(body, "ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity") {
				code = " concurrent"
			}
			results <- fmt.Sprint(resp.StatusCode, code)
		}()
	}
	count := map[string]int{}
	for range 4 {
		count[<-results]++
	}
	if count["201"] != 1 || count["409 concurrent"] != 3 {
		t.Errorf("%v", count)
	}
}
