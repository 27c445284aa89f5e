package arm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
)

// authorizationURI is in the challenge with which Resource Manager answers a
// request without a token: Bearer authorization_uri="https://host/TENANT", ...
var authorizationURI = regexp.MustCompile(`authorization(?:_uri)?="https://[^/"]+/([0-9a-fA-F-]{36})/?["/]`)

// TenantOf asks Resource Manager, without a token, to which tenant a
// subscription belongs. base carries transport and retries.
func TenantOf(ctx context.Context, c Cloud, base policy.ClientOptions, subscription string) (string, error) {
	endpoint := c.Configuration().Services["resourceManager"].Endpoint
	req, err := runtime.NewRequest(ctx, http.MethodGet, runtime.JoinPaths(endpoint, "subscriptions", subscription)+"?api-version=2022-12-01")
	if err != nil {
		return "", fmt.Errorf("asking for the tenant of subscription %s: %w", subscription, err)
	}
	resp, err := runtime.NewPipeline("lanyard", "v0.0.0", runtime.PipelineOptions{}, &base).Do(req)
	if err != nil {
		return "", fmt.Errorf("asking for the tenant of subscription %s: %w", subscription, err)
	}
	defer resp.Body.Close()
	for _, challenge := range resp.Header.Values("WWW-Authenticate") {
		if found := authorizationURI.FindStringSubmatch(challenge); found != nil {
			return found[1], nil
		}
	}
	if resp.StatusCode == http.StatusNotFound {
		return "", fmt.Errorf("the subscription %s does not exist in %s: check --subscription-id and --azure-env", subscription, c.Name)
	}
	return "", errors.New("Resource Manager does not say to which tenant subscription " + subscription + " belongs (" + resp.Status + ")")
}
