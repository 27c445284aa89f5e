package caller

import "strings"

// PodOfCgroups returns the UID of the pod that a process's cgroups (the content
// of /proc/{pid}/cgroup) lie in; empty if they lie in none, or in several.
//
// The forms are kubelet's: pod{uid} below kubepods with the driver cgroupfs,
// …-pod{uid with _}.slice with systemd, for each hierarchy of version 1 and the
// one of version 2, below whatever the runtime and a nested node put above. The
// outermost counts: a container may make cgroups of any name, but only below
// its own.
func PodOfCgroups(cgroups string) string {
	uid := ""
	for line := range strings.Lines(cgroups) {
		// hierarchy-ID:controllers:path
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		of := podOfPath(parts[2])
		if of == "" {
			continue
		}
		if uid != "" && uid != of {
			return ""
		}
		uid = of
	}
	return uid
}

func podOfPath(path string) string {
	for segment := range strings.SplitSeq(path, "/") {
		if uid := podOfSegment(segment); uid != "" {
			return uid
		}
	}
	return ""
}

func podOfSegment(segment string) string {
	name, systemd := strings.CutSuffix(segment, ".slice")
	if systemd {
		// kubepods-burstable-pod{uid}.slice, after kubelet- in some nested nodes
		i := strings.LastIndex(name, "-pod")
		if i < 0 || !strings.HasSuffix("-"+name[:i], "-kubepods") && !strings.Contains("-"+name[:i]+"-", "-kubepods-") {
			return ""
		}
		return uid(strings.ReplaceAll(name[i+len("-pod"):], "_", "-"))
	}
	rest, ok := strings.CutPrefix(name, "pod")
	if !ok {
		return ""
	}
	return uid(rest)
}

// uid returns s in small letters if it is a UUID in its usual form. Static pods
// have a hash there, which is no UID that the API server knows.
func uid(s string) string {
	const form = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
	if len(s) != len(form) {
		return ""
	}
	for i := range len(form) {
		c := s[i]
		hex := '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
		if form[i] == '-' && c != '-' || form[i] == 'x' && !hex {
			return ""
		}
	}
	return strings.ToLower(s)
}
