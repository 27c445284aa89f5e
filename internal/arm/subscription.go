package arm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// DefaultSubscription reads az's current subscription in a cloud from its
// configuration, dir (~/.azure, or what AZURE_CONFIG_DIR names).
func DefaultSubscription(dir string, c Cloud) (string, error) {
	name := strings.Replace(c.Name, "AzurePublicCloud", "AzureCloud", 1)
	name = strings.Replace(name, "AzureUSGovernmentCloud", "AzureUSGovernment", 1) // az's names
	found, err := fromClouds(filepath.Join(dir, "clouds.config"), name)
	if err == nil && found == "" {
		found, err = fromProfile(filepath.Join(dir, "azureProfile.json"), name)
	}
	if err == nil && found == "" {
		err = fmt.Errorf("which subscription? az has none in %s: give --subscription-id, or sign in with: az login", c.Name)
	}
	return found, err
}

// fromClouds reads the INI file in which az notes a subscription for each cloud.
func fromClouds(file, cloud string) (string, error) {
	data, err := read(file)
	section := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok && section == cloud && strings.TrimSpace(key) == "subscription" {
			return strings.TrimSpace(value), nil
		}
	}
	return "", err
}

// fromProfile reads the list of subscriptions that az can use.
func fromProfile(file, cloud string) (string, error) {
	data, err := read(file)
	if err != nil || len(data) == 0 {
		return "", err
	}
	var profile struct {
		Subscriptions []struct {
			ID      string `json:"id"`
			Default bool   `json:"isDefault"`
			Cloud   string `json:"environmentName"`
		} `json:"subscriptions"`
	}
	if err := json.Unmarshal(data, &profile); err != nil {
		return "", fmt.Errorf("%s is not what az writes: give --subscription-id: %w", file, err)
	}
	for _, s := range profile.Subscriptions {
		if s.Default && s.Cloud == cloud {
			return s.ID, nil
		}
	}
	return "", nil
}

// read reads a file without the byte order mark that az writes; a file that
// does not exist is empty.
func read(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what az knows: %w", err)
	}
	return bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")), nil
}
