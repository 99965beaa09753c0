package check;

import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;

/** Runs the checks of every class that this version of the client could compile; arguments select checks by name. */
public final class Main {
    public static void main(String[] arguments) throws Exception {
        String version = System.getProperty("check.version", "?");
        int failed = 0;
        for (String type : Arrays.asList("check.Since43", "check.Since47", "check.Since5", "check.Since5Operators")) {
            Class<?> found;
            try {
                found = Class.forName(type);
            } catch (ClassNotFoundException older) {
                continue;
            }
            List<Method> checks = new ArrayList<>(Arrays.asList(found.getDeclaredMethods()));
            checks.removeIf(m -> !Modifier.isPublic(m.getModifiers()) || m.getParameterCount() != 0);
            checks.sort(Comparator.comparing(Method::getName));
            for (Method check : checks) {
                if (arguments.length > 0 && !Arrays.asList(arguments).contains(check.getName())) {
                    continue;
                }
                long begun = System.nanoTime();
                String words = check.getName().replaceAll("([A-Z])", " $1").toLowerCase();
                try {
                    check.invoke(null);
                    System.out.printf("passed  java %s: %s, %.1f s%n", version, words, (System.nanoTime() - begun) / 1e9);
                } catch (Throwable problem) {
                    if (problem.getCause() instanceof Kit.Skipped) {
                        System.out.printf("SKIPPED java %s: %s: %s%n", version, words, problem.getCause().getMessage());
                        continue;
                    }
                    failed++;
                    Throwable cause = problem.getCause() == null ? problem : problem.getCause();
                    cause.printStackTrace();
                    System.out.printf("FAILED  java %s: %s: %s%n", version, words, cause);
                } finally {
                    Kit.closeAll();
                }
            }
        }
        System.out.flush();
        Runtime.getRuntime().halt(failed == 0 ? 0 : 1);
    }
}
