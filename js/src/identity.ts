/** Whether it covers what may be seen, so that equal identities may share. */
export const complete = (identity = ""): boolean => /[^.]$/.test(identity);

/**
 * Whether a known identity was followed by that of another login. It has three parts: the key that made it, the login, and all that
 * decides what may be seen. Two keys cannot be compared. If only the last part has changed, it is still the same login.
 */
export const replaced = (before = "", now = ""): boolean => {
  const [key, who] = before.split(".");
  const [newKey, newWho] = now.split(".");
  return !!before && before !== now && (!now || (key === newKey && !(who && who === newWho)));
};
