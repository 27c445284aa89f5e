package arm

import (
	"encoding/json"
	"fmt"
)

// Merge applies an RFC 7396 merge patch to a JSON object; either may be empty.
func Merge(target, patch json.RawMessage) (json.RawMessage, error) {
	var t, p any
	if len(target) > 0 {
		if err := json.Unmarshal(target, &t); err != nil {
			return nil, fmt.Errorf("stored properties: %w", err)
		}
	}
	if len(patch) == 0 {
		return target, nil
	}
	if err := json.Unmarshal(patch, &p); err != nil {
		return nil, InvalidBody(err)
	}
	return json.Marshal(mergeValue(t, p))
}

func mergeValue(target, patch any) any {
	changes, isObject := patch.(map[string]any)
	if !isObject {
		return patch
	}
	out, isObject := target.(map[string]any)
	if !isObject {
		out = map[string]any{}
	}
	for k, v := range changes {
		if v == nil {
			delete(out, k)
			continue
		}
		out[k] = mergeValue(out[k], v)
	}
	return out
}
