package arm_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lanyard-id/lanyard/internal/arm"
)

func TestTheSubscriptionIsTheOneThatAzWorksIn(t *testing.T) {
	const profile = "\xef\xbb\xbf" + `{"installationId":"x","subscriptions":[{"id":"other","isDefault":false,"environmentName":"AzureCloud"},{"id":"gov","isDefault":true,"environmentName":"AzureUSGovernment"},{"id":"mine","isDefault":true,"environmentName":"AzureCloud"}]}`
	for _, c := range []struct {
		name, clouds, profile, cloud string
		want, err                    string
	}{
		{"noted for the cloud", "[AzureUSGovernment]\nsubscription = gov\n\n[AzureCloud]\nsubscription = mine\n", "", "", "mine", ""},
		{"noted for another cloud", "[AzureUSGovernment]\nsubscription = gov\n\n[AzureCloud]\nsubscription = mine\n", "", arm.Government, "gov", ""},
		{"of the profile", "", profile, "", "mine", ""},
		{"of the profile, for another cloud", "", profile, arm.Government, "gov", ""},
		{"of no cloud that counts", "[AzureCloud]\nsubscription = mine\n", profile, arm.China, "", "az has none in AzureChinaCloud"},
		{"nothing at all", "", "", "", "", "give --subscription-id, or sign in with: az login"},
		{"a broken profile", "", "{", "", "", "is not what az writes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"clouds.config": c.clouds, "azureProfile.json": c.profile} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cloud, err := arm.CloudByName(c.cloud)
			if err != nil {
				t.Fatal(err)
			}
			got, err := arm.DefaultSubscription(dir, cloud)
			if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}
