package reference;

import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.Random;
import org.apache.rocketmq.filter.expression.BooleanExpression;
import org.apache.rocketmq.filter.expression.ComparisonExpression;
import org.apache.rocketmq.filter.expression.EvaluationContext;
import org.apache.rocketmq.filter.parser.SelectorParser;

/**
 * Prints random SQL92 expressions over random properties, with what RocketMQ's filter module says of them.
 * Arguments: seed, number of cases. A line is expression, properties, verdict, separated by tabs. Verdicts: true, false,
 * null, error (an exception while it runs), refused (by the parser), rest (the parser stops before the end of the text).
 */
public final class FilterCases extends SelectorParser {
    private static final String[] NAMES = {"a", "b", "c", "d", "_e$1"};
    private static final String[] VALUES = {
        "0", "1", "2", "3", "-1", "+2", "007", "2147483647", "2147483648", "-2147483648", "9223372036854775807",
        "9223372036854775808", "1.5", "-0.5", ".5", "5.", "1e3", "1E400", "-1e400", "1e-400", "2.0", "2.0f", "3d", " 2 ", "\t1.5",
        "NaN", "-NaN", "Infinity", "-Infinity", "inf", "nan", "true", "TRUE", "false", "yes", "x", "xyz", "it's", "é", "标签",
        "a b", "1 2", "-", "+", ".", "e5", "1e", "--1", "0.0", "-0.0", "-0", "1_0", "2L", "NaNf", "Infinityd", "1ef", "1.0e+2D"};
    private static final String[] NUMBERS = {
        "0", "1", "2", "3", "2L", "10l", "2147483647", "2147483648", "9223372036854775807", "9223372036854775808", "1.5", "2.0",
        "1", "3", ".5", "5.", "1e3", "1E-3", "1.5e+2", "1e400", "0.0", "0.5", "1", "2", "3", "1.5", "007", "00.5"};
    private static final String[] TEXTS = {"''", "'x'", "'xyz'", "'y'", "'it''s'", "''''", "'1'", "'2'", "'1.5'", "'true'", "'é'", "'标'"};
    private static final String[] JUNK = {
        "AND", "OR", "NOT", "(", ")", ",", "=", "<>", "<", "<=", ">", ">=", "IS", "NULL", "IN", "BETWEEN", "CONTAINS", "TRUE",
        "LIKE", "+", "-", "--", "/*", "*/", "'", "!", "a", "1", "'x'", ";", "."};

    private final Random random;

    private FilterCases(Random random, String sql) {
        super(sql);
        this.random = random;
    }

    public static void main(String[] arguments) {
        long seed = Long.parseLong(arguments[0]);
        int cases = Integer.parseInt(arguments[1]);
        PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        out.println("# RocketMQ 5.5.0, seed " + seed + ", made by tests/filter-reference");
        FilterCases make = new FilterCases(new Random(seed), "");
        for (int i = 0; i < cases; i++) {
            String sql = make.expression();
            Map<String, String> properties = make.properties();
            StringBuilder text = new StringBuilder();
            properties.forEach((name, value) -> text.append(name).append('\1').append(value).append('\2'));
            out.println(escaped(sql) + '\t' + escaped(text.toString()) + '\t' + verdict(sql, properties));
        }
        out.flush();
    }

    private static String verdict(String sql, Map<String, String> properties) {
        BooleanExpression expression;
        FilterCases parser = new FilterCases(null, sql);
        ComparisonExpression.CONVERT_STRING_EXPRESSIONS.set(true);
        try {
            expression = parser.parse();
        } catch (Throwable e) {
            return "refused";
        } finally {
            ComparisonExpression.CONVERT_STRING_EXPRESSIONS.remove();
        }
        try {
            if (parser.getNextToken().kind != EOF) {
                return "rest";
            }
        } catch (Throwable e) {
            return "rest";
        }
        try {
            return String.valueOf(expression.evaluate(new Context(properties)));
        } catch (Throwable e) {
            return "error";
        }
    }

    private static final class Context implements EvaluationContext {
        private final Map<String, String> properties;

        Context(Map<String, String> properties) {
            this.properties = properties;
        }

        @Override
        public Object get(String name) {
            return properties.get(name);
        }

        @Override
        public Map<String, Object> keyValues() {
            return new HashMap<>(properties);
        }
    }

    private static String escaped(String text) {
        return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r").replace("\f", "\\f")
            .replace("\1", "\\1").replace("\2", "\\2");
    }

    private boolean one(int of) {
        return random.nextInt(of) == 0;
    }

    private String of(String... choices) {
        return choices[random.nextInt(choices.length)];
    }

    private Map<String, String> properties() {
        Map<String, String> properties = new java.util.TreeMap<>();
        for (String name : NAMES) {
            if (!one(4)) {
                properties.put(name, of(VALUES));
            }
        }
        return properties;
    }

    /** Mostly well formed; some with a word too many, too few or changed. */
    private String expression() {
        String sql = condition(random.nextInt(4));
        if (one(9)) {
            String[] words = sql.split(" ");
            int at = random.nextInt(words.length);
            words[at] = one(3) ? "" : one(2) ? of(JUNK) : words[at] + " " + of(JUNK);
            sql = String.join(" ", words);
        }
        if (one(8)) {
            sql = sql.replaceFirst(" ", of("\n", "\t", "  ", " /* c */ ", " -- c\n", "\r\n", "\f", "/***/"));
        }
        return one(10) ? sql.toLowerCase(java.util.Locale.ROOT) : sql;
    }

    private String condition(int depth) {
        if (depth > 0) {
            switch (random.nextInt(6)) {
                case 0: return condition(depth - 1) + " AND " + condition(depth - 1);
                case 1: return condition(depth - 1) + " OR " + condition(depth - 1);
                case 2: return "( " + condition(depth - 1) + " )";
                case 3: return "NOT ( " + condition(depth - 1) + " )";
                case 4: return "( " + condition(depth - 1) + " ) " + of("=", "<>", "=", "<>", "<") + " " + operand(depth - 1);
                default: return condition(depth - 1) + of(" AND ", " OR ") + condition(0);
            }
        }
        String not = one(2) ? "NOT " : "";
        switch (random.nextInt(12)) {
            case 0: case 1: return operand(1) + " " + of("=", "<>") + " " + operand(1);
            case 2: case 3: case 4: return ordered() + " " + of("<", "<=", ">", ">=", "=", "<>") + " " + of(NUMBERS);
            case 5: return ordered() + " " + of("<", "<=", ">", ">=") + " " + ordered();
            case 6: return ordered() + " " + not + "BETWEEN " + ordered() + " AND " + ordered();
            case 7: return of(NAMES) + " " + not + "BETWEEN " + of(NUMBERS) + " AND " + of(NUMBERS);
            case 8: {
                StringBuilder list = new StringBuilder(of(TEXTS));
                while (!one(3)) {
                    list.append(one(2) ? "," : " , ").append(of(TEXTS));
                }
                return (one(9) ? operand(0) : of(NAMES)) + " " + not + "IN ( " + list + " )";
            }
            case 9: return operand(0) + " IS " + not + "NULL";
            case 10: return operand(0) + " " + not + of("CONTAINS ", "STARTSWITH ", "ENDSWITH ") + of(TEXTS);
            default: return of("TRUE", "FALSE", "NULL", "a", "NOT b", "NOT TRUE");
        }
    }

    /** Mostly something that has an order. */
    private String ordered() {
        switch (random.nextInt(12)) {
            case 0: return operand(0);
            case 1: case 2: return of(NUMBERS);
            case 3: return of("- ", "+ ", "-") + (one(2) ? of(NUMBERS) : of(NAMES));
            default: return of(NAMES);
        }
    }

    private String operand(int depth) {
        switch (random.nextInt(depth > 0 ? 9 : 7)) {
            case 0: case 1: case 2: return of(NAMES);
            case 3: case 4: return of(NUMBERS);
            case 5: return of(TEXTS);
            case 6: return of("- ", "+ ", "-", "- - ") + (one(2) ? of(NUMBERS) : of(NAMES));
            case 7: return of("TRUE", "FALSE", "NULL");
            default: return "( " + condition(depth - 1) + " )";
        }
    }
}
